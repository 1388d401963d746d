using GuestMemory.Core;

namespace GuestMemory.PowerShell;

/// <summary>How fast memory is written; what Measure-DirtyRate emits.</summary>
public sealed class DirtyRate
{
    internal DirtyRate(DirtyRateMeter meter, MigrationForecast? forecast)
    {
        (Source, Duration, SampleCount, ByteSize, Rate, WorkingSet, Forecast) =
            (meter.Source, meter.Duration, meter.SampleCount, meter.ByteSize, meter.Rate, meter.WorkingSet, forecast);
    }

    /// <summary>What tracked the writes.</summary>
    public string Source { get; }

    /// <summary>How long was measured.</summary>
    public TimeSpan Duration { get; }

    /// <summary>The number of intervals.</summary>
    public int SampleCount { get; }

    /// <summary>The bytes of all the memory.</summary>
    public ulong ByteSize { get; }

    /// <summary>The bytes of pages that were written a second, by intervals.</summary>
    public double Rate { get; }

    /// <summary>The bytes of all pages that were written at least once.</summary>
    public ulong WorkingSet { get; }

    /// <summary>How a live migration would go; null without -Bandwidth.</summary>
    public MigrationForecast? Forecast { get; }
}
