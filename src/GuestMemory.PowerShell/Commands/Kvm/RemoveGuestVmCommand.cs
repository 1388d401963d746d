using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Remove-GuestVm: ends VMs.</summary>
[Cmdlet(VerbsCommon.Remove, "GuestVm", SupportsShouldProcess = true, DefaultParameterSetName = "Vm")]
[OutputType(typeof(void))]
public sealed class RemoveGuestVmCommand : GuestMemoryCmdlet
{
    /// <summary>The VMs.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Vm")]
    [ArgumentCompleter(typeof(PositionCompleter<VmNameCompleter>))]
    [ValidateNotNull]
    public GuestVm[] Vm { get; set; } = [];

    /// <summary>Names, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Name")]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var vm in Vm) Remove(vm);
        foreach (var name in Name)
        {
            Attempt(() =>
            {
                foreach (var vm in VmLookup.ByName(name)) Remove(vm);
            }, name);
        }
    }

    private void Remove(GuestVm vm)
    {
        if (!ShouldProcess(vm.Name, "Remove the VM")) return;
        vm.Dispose();
        Session.Remove(vm);
    }
}
