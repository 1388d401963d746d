using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-UffdVm: ends the service of VMs.</summary>
[Cmdlet(VerbsLifecycle.Stop, "UffdVm", SupportsShouldProcess = true, ConfirmImpact = ConfirmImpact.High)]
[OutputType(typeof(void))]
public sealed class StopUffdVmCommand : GuestMemoryCmdlet
{
    /// <summary>The VMs, or their names or numbers.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(UffdVmNameCompleter))]
    [UffdVm(Many = true)]
    [ValidateNotNull]
    [SupportsWildcards]
    public UffdServedVm[] UffdVm { get; set; } = [];

    /// <summary>Whether the VMM is killed, or the pages that have not come are poisoned; unless given as the VM's OnError says.</summary>
    [Parameter]
    public UffdOnError OnError { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var vm in UffdVm) Attempt(() => Stop(vm), vm);
    }

    private void Stop(UffdServedVm vm)
    {
        UffdOnError? given = MyInvocation.BoundParameters.ContainsKey(nameof(OnError)) ? OnError : null;
        var what = (given ?? vm.OnError) == UffdOnError.Kill ? "Kill the VMM of the VM" : "Stop serving the VM, and poison its missing pages";
        var target = $"{vm.Name} (process {vm.ProcessId}, handler at {vm.SocketPath})";
        if (ShouldProcess(target, what)) vm.Stop(given, StopToken);
    }
}
