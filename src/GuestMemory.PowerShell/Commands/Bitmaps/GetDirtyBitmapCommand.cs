using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-DirtyBitmap: which pages were written.</summary>
[Cmdlet(VerbsCommon.Get, "DirtyBitmap")]
[OutputType(typeof(DirtyBitmap), typeof(AddressRange))]
public sealed class GetDirtyBitmapCommand : MemoryCmdlet
{
    /// <summary>Takes the marks: the pages are clean afterwards.</summary>
    [Parameter]
    public SwitchParameter Clear { get; set; }

    /// <summary>Emits the runs of dirty pages instead of the bitmap.</summary>
    [Parameter]
    public SwitchParameter AsRange { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        foreach (var region in memory.Regions)
        {
            Attempt(() =>
            {
                var bitmap = region.GetDirtyBitmap(Clear);
                if (!AsRange) WriteObject(bitmap);
                else WriteObject(bitmap.GetRanges(), enumerateCollection: true);
            }, region);
        }
    }
}
