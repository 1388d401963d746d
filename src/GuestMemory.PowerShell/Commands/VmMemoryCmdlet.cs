using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet that only reads a guest's memory, and so takes that of a VM that a handler serves or that is connected to a back end, too.</summary>
public abstract class VmMemoryCmdlet : MemoryCmdlet
{
    // Mandatory is one of the two, and neither in every parameter set of a cmdlet.

    /// <inheritdoc/>
    [Parameter(ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>A VM of a page-fault handler that handed its memory over, or its name or number.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UffdVmNameCompleter))]
    [UffdVm]
    [ValidateNotNull]
    public UffdServedVm? UffdVm { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (UffdVm is null) base.ProcessRecord();
        else if (Memory.Length > 0) WriteError(new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Give regions or -UffdVm, not both."), UffdVm);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (UffdVm is not { } vm) base.EndProcessing();
        else if (Memory.Length == 0) Attempt(() => ProcessVm(vm), vm);
    }

    private protected override void ProcessOther(IGuestMemorySource source)
    {
        if (source is RefusedMemory { Value: UffdServedVm vm }) ProcessVm(vm);
        else base.ProcessOther(source);
    }

    /// <summary>Does the cmdlet's work on a VM that a handler serves: unless overridden, on its memory, to be read.</summary>
    private protected virtual void ProcessVm(UffdServedVm vm)
    {
        var memory = vm.OpenMemory();
        try
        {
            Process(memory);
        }
        finally
        {
            foreach (var region in memory.Regions) region.Dispose();
        }
    }
}
