using System.Globalization;

namespace GuestMemory.Core;

/// <summary>How a live migration (pre-copy) of memory would go; the result of <see cref="DirtyRateMeter.Forecast"/>.</summary>
/// <param name="Bandwidth">The bytes that the migration copies a second.</param>
/// <param name="DowntimeLimit">How long the VM may stand still at the end.</param>
/// <param name="Converges">
/// Whether what is left fits into the downtime at some time. Where it never does, the other figures say how it would be if the VM were stopped
/// where the migration makes no further progress.
/// </param>
/// <param name="Rounds">How often the migration looks which pages were written; the first copy of all memory is one.</param>
/// <param name="Duration">The time from the start until the VM runs at the destination.</param>
/// <param name="TransferredBytes">The bytes that are copied in this time.</param>
/// <param name="Downtime">How long the VM stands still while the rest is copied. What a VMM does besides copying memory comes on top.</param>
public sealed record MigrationForecast(double Bandwidth, TimeSpan DowntimeLimit, bool Converges, int Rounds, TimeSpan Duration, ulong TransferredBytes, TimeSpan Downtime)
{
    /// <summary>The forecast in short: "3 rounds, 12.5 s, of which 210 ms down".</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{(Converges ? "" : "does not converge: ")}{Rounds} {(Rounds == 1 ? "round" : "rounds")}, {Duration.TotalSeconds:0.0#} s, of which {Downtime.TotalMilliseconds:0} ms down");
}
