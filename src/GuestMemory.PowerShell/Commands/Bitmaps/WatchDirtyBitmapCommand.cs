using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Watch-DirtyBitmap: how fast memory is written, and where, one object an interval.</summary>
[Cmdlet(VerbsCommon.Watch, "DirtyBitmap", DefaultParameterSetName = MemorySet)]
[OutputType(typeof(DirtySample))]
public sealed class WatchDirtyBitmapCommand : DirtyRateCmdlet
{
    /// <summary>The seconds from one sample to the next.</summary>
    [Parameter]
    [ValidateRange(0.001, 86400.0)]
    public double Interval { get; set; } = 1;

    /// <summary>How many samples to take; unless given, until Ctrl+C.</summary>
    [Parameter]
    [ValidateRange(1, int.MaxValue)]
    public int SampleCount { get; set; } = int.MaxValue;

    /// <summary>How many of the hottest ranges each sample lists.</summary>
    [Parameter]
    [ValidateRange(0, 1000)]
    public int Hottest { get; set; } = 3;

    /// <inheritdoc/>
    protected override void Sample()
    {
        var count = 0;
        SampleEvery(Interval, () => SampleCount == int.MaxValue || ++count < SampleCount, WriteObject);
    }

    /// <inheritdoc/>
    private protected override DirtyRateMeter NewMeter() => new(Hottest);
}
