using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-DirtyBitmap: which pages were written.</summary>
[Cmdlet(VerbsCommon.Get, "DirtyBitmap", DefaultParameterSetName = FromMemory)]
[OutputType(typeof(DirtyBitmap), typeof(AddressRange))]
public sealed class GetDirtyBitmapCommand : MemoryCmdlet
{
    private const string FromMemory = "Memory";
    private const string FromHandler = "Handler";

    /// <summary>The regions, or whole address spaces.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = FromMemory)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>Page-fault handlers that track what their VMs write.</summary>
    [Parameter(Mandatory = true, ParameterSetName = FromHandler)]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <summary>Takes the marks: the pages are clean afterwards.</summary>
    [Parameter(ParameterSetName = FromMemory)]
    public SwitchParameter Clear { get; set; }

    /// <summary>Emits the runs of dirty pages instead of the bitmap.</summary>
    [Parameter]
    public SwitchParameter AsRange { get; set; }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (ParameterSetName == FromMemory) base.EndProcessing();
        foreach (var handler in Handler)
        {
            Attempt(() =>
            {
                foreach (var bitmap in handler.GetDirtyBitmaps()) Write(bitmap);
            }, handler);
        }
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        foreach (var region in memory.Regions)
        {
            Attempt(() => Write(region.GetDirtyBitmap(Clear)), region);
        }
    }

    private void Write(DirtyBitmap bitmap)
    {
        if (!AsRange) WriteObject(bitmap);
        else WriteObject(bitmap.GetRanges(), enumerateCollection: true);
    }
}
