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

    /// <summary>The tag that is the upper bound of a bucket.</summary>
    public const string Bound = "le";

    private static readonly string[] s_partsOfHistogram = [".bucket", ".count", ".sum"];

    private readonly MeterListener _listener = new();

    // In the order in which the instruments were made; under each what it measured last.
    private readonly List<(Instrument Instrument, List<(string Metric, string Line)> Samples)> _families = [];

    public OpenMetricsText(Meter meter)
    {
        _listener.InstrumentPublished = (instrument, listener) =>
        {
            // Meters of other handlers have the same name.
            if (instrument.Meter != meter) return;
            var samples = new List<(string Metric, string Line)>();
            _families.Add((instrument, samples));
            listener.EnableMeasurementEvents(instrument, samples);
        };
        _listener.SetMeasurementEventCallback<long>(static (instrument, value, tags, samples) => ((List<(string Metric, string Line)>)samples!).Add(Sample(instrument, value, tags)));
        _listener.SetMeasurementEventCallback<double>(static (instrument, value, tags, samples) => ((List<(string Metric, string Line)>)samples!).Add(Sample(instrument, value, tags)));
        _listener.Start();
    }

    public string Read()
    {
        foreach (var (_, samples) in _families) samples.Clear();
        _listener.RecordObservableInstruments();
        var text = new StringBuilder(4096);
        foreach (var family in _families.GroupBy(static entry => FamilyOf(entry.Instrument), StringComparer.Ordinal))
        {
            Head(text, family.Key, family.First().Instrument);
            // Those of a histogram stand together, one histogram after the other.
            foreach (var metric in family.SelectMany(static entry => entry.Samples).GroupBy(static sample => sample.Metric, StringComparer.Ordinal)) _ = text.AppendJoin("", metric.Select(static sample => sample.Line));
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

    /// <summary>A line, and the labels of the metric that it belongs to: those of a bucket but for its bound.</summary>
    private static (string Metric, string Line) Sample(Instrument instrument, double value, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        var end = PartOf(instrument)?.Replace('.', '_') ?? (IsCounter(instrument) ? "_total" : "");
        var labels = new List<string>(tags.Length);
        string? bound = null;
        foreach (var (name, tag) in tags)
        {
            if (name == Untold) continue;
            var label = $"{name}=\"{Escape(tag is double.PositiveInfinity ? "+Inf" : Convert.ToString(tag, CultureInfo.InvariantCulture) ?? "")}\"";
            if (name == Bound) bound = "," + label;
            else labels.Add(label);
        }

        var metric = string.Join(',', labels);
        return (metric, string.Create(CultureInfo.InvariantCulture, $"{FamilyOf(instrument)}{end}{{{metric}{bound}}} {value:R}\n"));
    }

    private static string Escape(string value) =>
        value.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal);
}
