using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Set-UffdVm: gives a VM another name, or has something else follow where a page of it cannot be read.</summary>
[Cmdlet(VerbsCommon.Set, "UffdVm", SupportsShouldProcess = true)]
[OutputType(typeof(UffdServedVm))]
public sealed class SetUffdVmCommand : GuestMemoryCmdlet
{
    /// <summary>The VMs, or their names or numbers.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(UffdVmNameCompleter))]
    [UffdVm(Many = true)]
    [ValidateNotNull]
    [SupportsWildcards]
    public UffdServedVm[] UffdVm { get; set; } = [];

    /// <summary>The new name.</summary>
    [Parameter(Position = 1)]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <summary>What follows where a page of the VM cannot be read.</summary>
    [Parameter]
    public UffdOnError OnError { get; set; }

    /// <summary>Emits the VMs as they are then.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void BeginProcessing()
    {
        if (Name is not null || MyInvocation.BoundParameters.ContainsKey(nameof(OnError))) return;
        ThrowTerminatingError(new ErrorRecord(new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Say what is to change: -Name or -OnError."),
            nameof(GuestMemoryError.ValueNotSupported), ErrorCategory.InvalidArgument, null));
    }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var vm in UffdVm) Attempt(() => Set(vm), vm);
    }

    private void Set(UffdServedVm vm)
    {
        var target = $"{vm.Name} (process {vm.ProcessId}, handler at {vm.SocketPath})";
        if (Name is not null && ShouldProcess(target, $"Name the VM {Name}")) vm.Rename(Name);
        if (MyInvocation.BoundParameters.ContainsKey(nameof(OnError)) && ShouldProcess(target, $"Set OnError to {OnError}")) vm.SetOnError(OnError);
        if (PassThru) WriteObject(vm.Handler.GetVms().Where(now => now.Id == vm.Id), enumerateCollection: true);
    }
}
