using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Measure-DirtyRate: how fast memory is written, and how a live migration would go.</summary>
[Cmdlet(VerbsDiagnostic.Measure, "DirtyRate", DefaultParameterSetName = MemorySet)]
[OutputType(typeof(DirtyRate))]
public sealed class MeasureDirtyRateCommand : DirtyRateCmdlet
{
    /// <summary>The seconds to measure.</summary>
    [Parameter]
    [ValidateRange(0.01, 86400.0)]
    public double Duration { get; set; } = 10;

    /// <summary>The seconds from one sample to the next.</summary>
    [Parameter]
    [ValidateRange(0.001, 86400.0)]
    public double Interval { get; set; } = 0.1;

    /// <summary>The bytes that a migration copies a second.</summary>
    [Parameter]
    [Number]
    [ValidateRange(1UL, ulong.MaxValue)]
    public ulong Bandwidth { get; set; }

    /// <summary>The seconds that the VM may stand still at the end of a migration.</summary>
    [Parameter]
    [ValidateRange(0.0, 86400.0)]
    public double DowntimeLimit { get; set; } = 0.3;

    /// <summary>The bytes that the first round of a migration copies; unless given, all memory.</summary>
    [Parameter]
    [Number]
    public ulong FirstRound { get; set; }

    /// <inheritdoc/>
    protected override void Sample()
    {
        var progress = new ProgressRecord(1, "Measuring how fast memory is written", " ");
        SampleEvery(Interval, () =>
        {
            var done = Meters.FirstOrDefault()?.Duration.TotalSeconds ?? Duration;
            progress.PercentComplete = (int)Math.Min(100, done * 100 / Duration);
            progress.SecondsRemaining = (int)Math.Max(0, Duration - done);
            if (Duration >= 2) WriteProgress(progress);
            return done < Duration;
        }, static _ => { });
        progress.RecordType = ProgressRecordType.Completed;
        if (Duration >= 2) WriteProgress(progress);
        foreach (var meter in Meters) WriteObject(new DirtyRate(meter, Forecast(meter)));
    }

    /// <inheritdoc/>
    private protected override DirtyRateMeter NewMeter() => new(0);

    private MigrationForecast? Forecast(DirtyRateMeter meter) => MyInvocation.BoundParameters.ContainsKey(nameof(Bandwidth))
        ? meter.Forecast(Bandwidth, TimeSpan.FromSeconds(DowntimeLimit), MyInvocation.BoundParameters.ContainsKey(nameof(FirstRound)) ? FirstRound : null)
        : null;
}
