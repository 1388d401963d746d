using System.Diagnostics.Metrics;
using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Listens to the instruments of one meter, and writes what they measure as OpenMetrics text. Names are made as OpenTelemetry's exporters make them: dots
/// become underscores, a unit that the name lacks is its end, and so is _total of a counter. Instruments whose names end in .bucket, .count and .sum are
/// one histogram of seconds. One thread at a time may read.
/// </summary>
internal sealed class OpenMetricsText : IDisposable
{
    /// <summary>The tag that is left out: a label that all samples have alike, and that those who read the text never had.</summary>
    public const string Untold = "strategy";

    private static readonly string[] s_partsOfHistogram = [".bucket", ".count", ".sum"];

    private readonly MeterListener _listener = new();

    // In the order in which the instruments were made; under each what it measured last.
    private readonly List<(Instrument Instrument, StringBuilder Samples)> _families = [];

    public OpenMetricsText(Meter meter)
    {
        _listener.InstrumentPublished = (instrument, listener) =>
        {
            // Meters of other handlers have the same name.
            if (instrument.Meter != meter) return;
            var samples = new StringBuilder();
            _families.Add((instrument, samples));
            listener.EnableMeasurementEvents(instrument, samples);
        };
        _listener.SetMeasurementEventCallback<long>(static (instrument, value, tags, samples) => Sample((StringBuilder)samples!, instrument, value, tags));
        _listener.SetMeasurementEventCallback<double>(static (instrument, value, tags, samples) => Sample((StringBuilder)samples!, instrument, value, tags));
        _listener.Start();
    }

    public string Read()
    {
        foreach (var (_, samples) in _families) _ = samples.Clear();
        _listener.RecordObservableInstruments();
        var text = new StringBuilder(4096);
        string? last = null;
        foreach (var (instrument, samples) in _families)
        {
            var family = FamilyOf(instrument);
            if (family != last) Head(text, family, instrument);
            last = family;
            _ = text.Append(samples);
        }

        return text.Append("# EOF\n").ToString();
    }

    public void Dispose() => _listener.Dispose();

    private static bool IsCounter(Instrument instrument) => instrument is ObservableCounter<long> or ObservableCounter<double>;

    private static string? PartOf(Instrument instrument) => Array.Find(s_partsOfHistogram, part => instrument.Name.EndsWith(part, StringComparison.Ordinal));

    private static string FamilyOf(Instrument instrument)
    {
        var part = PartOf(instrument);
        var name = instrument.Name[..^(part?.Length ?? 0)].Replace('.', '_');
        var unit = part is not null ? "_seconds" : instrument.Unit switch { "s" => "_seconds", "By" => "_bytes", "1" => "_ratio", _ => "" };
        return name.EndsWith(unit, StringComparison.Ordinal) ? name : name + unit;
    }

    private static void Head(StringBuilder text, string family, Instrument instrument)
    {
        var type = PartOf(instrument) is not null ? "histogram" : IsCounter(instrument) ? "counter" : "gauge";
        _ = text.Append(CultureInfo.InvariantCulture, $"# TYPE {family} {type}\n");
        if (family.EndsWith("_seconds", StringComparison.Ordinal)) _ = text.Append(CultureInfo.InvariantCulture, $"# UNIT {family} seconds\n");
        _ = text.Append(CultureInfo.InvariantCulture, $"# HELP {family} {instrument.Description}\n");
    }

    private static void Sample(StringBuilder samples, Instrument instrument, double value, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        var end = PartOf(instrument)?.Replace('.', '_') ?? (IsCounter(instrument) ? "_total" : "");
        _ = samples.Append(FamilyOf(instrument)).Append(end);
        var mark = '{';
        foreach (var (name, tag) in tags)
        {
            if (name == Untold) continue;
            _ = samples.Append(mark).Append(name).Append("=\"").Append(Escape(tag is double.PositiveInfinity ? "+Inf" : Convert.ToString(tag, CultureInfo.InvariantCulture) ?? "")).Append('"');
            mark = ',';
        }

        _ = samples.Append(CultureInfo.InvariantCulture, $"}} {value:R}\n");
    }

    private static string Escape(string value) =>
        value.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal);
}
