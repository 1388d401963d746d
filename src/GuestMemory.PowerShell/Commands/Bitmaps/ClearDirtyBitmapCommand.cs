using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Clear-DirtyBitmap: makes every page clean.</summary>
[Cmdlet(VerbsCommon.Clear, "DirtyBitmap", SupportsShouldProcess = true)]
[OutputType(typeof(void))]
public sealed class ClearDirtyBitmapCommand : MemoryCmdlet
{
    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

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
