using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Clear-DirtyBitmap: makes every page clean.</summary>
[Cmdlet(VerbsCommon.Clear, "DirtyBitmap", SupportsShouldProcess = true)]
[OutputType(typeof(void))]
public sealed class ClearDirtyBitmapCommand : MemoryCmdlet
{
    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        foreach (var region in memory.Regions)
        {
            Attempt(() =>
            {
                var tracker = region.RequireTracker();
                if (ShouldProcess(region.ToString(), "Forget which pages were written")) tracker.Reset();
            }, region);
        }
    }
}
