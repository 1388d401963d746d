using System.Buffers;
using System.Globalization;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace GuestMemory.Core.Userfault;

/// <summary>Figures as text: a line of JSON, and what Prometheus and its kin read.</summary>
public static class UffdFiguresText
{
    /// <summary>The media type of <see cref="ToOpenMetrics"/>.</summary>
    public const string OpenMetricsType = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    // A path or a message is shown as it is; the line goes into no HTML.
    private static readonly JsonWriterOptions s_readable = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>One line of JSON, without its end. Times are microseconds, except where the name says seconds.</summary>
    public static string ToJson(UffdFigures figures)
    {
        ArgumentNullException.ThrowIfNull(figures);
        var buffer = new ArrayBufferWriter<byte>(1024);
        using (var json = new Utf8JsonWriter(buffer, s_readable)) Write(json, figures);
        return Encoding.UTF8.GetString(buffer.WrittenSpan);
    }

    /// <summary>OpenMetrics text: totals of each image, VMs that have ended among them, then each VM that is served, by its name.</summary>
    /// <param name="images">The figures of the VMs of each image; its socket and its name are the labels of every sample.</param>
    public static string ToOpenMetrics(params IReadOnlyList<UffdFigures> images)
    {
        ArgumentNullException.ThrowIfNull(images);
        var text = new StringBuilder(4096);
        Head(text, "faults", "counter", "Page faults that were answered.");
        foreach (var image in images)
        {
            foreach (var (outcome, count) in Outcomes(image)) Sample(text, "faults_total", $"{Labels(image)},outcome=\"{outcome}\"", count);
        }

        Each("deferred", "counter", "Page faults that had to wait.", static image => image.DeferredCount);
        Head(text, "bytes", "counter", "Bytes that were brought in.");
        foreach (var image in images)
        {
            foreach (var (path, count) in Paths(image)) Sample(text, "bytes_total", $"{Labels(image)},path=\"{path}\"", count);
        }

        Each("removes", "counter", "Removals that VMs reported.", static image => image.RemoveCount);
        Each("source_errors", "counter", "Times that the source could not be read.", static image => image.SourceErrorCount);
        Each("vms", "gauge", "VMs that are served.", static image => image.Vms.Count);
        Each("queue_depth", "gauge", "Page faults that are read and not answered.", static image => image.QueueDepth);
        Head(text, "latency_seconds", "histogram", "From reading a fault to its answer.");
        foreach (var image in images) Latency(text, image);
        Each("latency_max_seconds", "gauge", "The longest time from reading a fault to its answer.", static image => image.LatencyMax.TotalSeconds);
        EachVm("present_ratio", "gauge", "How much of a VM's memory has come.", static vm => vm.PercentPresent / 100);
        EachVm("vm_faults", "counter", "Page faults of a VM that were answered.", static vm => vm.FaultCount);
        EachVm("vm_bytes", "counter", "Bytes of the image that were brought in for a VM.", static vm => vm.ByteCount);
        EachVm("vm_poisoned", "counter", "Pages of a VM that were poisoned.", static vm => vm.PoisonedCount);
        return text.Append("# EOF\n").ToString();

        void Each(string name, string type, string help, Func<UffdFigures, double> value)
        {
            Head(text, name, type, help);
            foreach (var image in images) Sample(text, NameOf(name, type), Labels(image), value(image));
        }

        void EachVm(string name, string type, string help, Func<UffdFigures, double> value)
        {
            Head(text, name, type, help);
            foreach (var image in images)
            {
                foreach (var vm in image.Vms) Sample(text, NameOf(name, type), Labels(image, vm), value(vm));
            }
        }
    }

    private static void Latency(StringBuilder text, UffdFigures image)
    {
        long recorded = 0;
        for (var i = 0; i < image.LatencyCounts.Count; i++)
        {
            recorded += image.LatencyCounts[i];
            var bound = i < UffdFigures.LatencyBounds.Count ? UffdFigures.LatencyBounds[i].TotalSeconds.ToString(CultureInfo.InvariantCulture) : "+Inf";
            Sample(text, "latency_seconds_bucket", $"{Labels(image)},le=\"{bound}\"", recorded);
        }

        Sample(text, "latency_seconds_count", Labels(image), recorded);
        Sample(text, "latency_seconds_sum", Labels(image), image.LatencySum.TotalSeconds);
    }

    private static string NameOf(string name, string type) => type == "counter" ? name + "_total" : name;

    private static string Labels(UffdFigures image) => $"socket=\"{Escape(image.SocketPath ?? "")}\",image=\"{Escape(image.Image ?? "")}\"";

    private static string Labels(UffdFigures image, UffdFigures vm) =>
        string.Create(CultureInfo.InvariantCulture, $"{Labels(image)},vm=\"{Escape(vm.VmName ?? "")}\",pid=\"{vm.ProcessId}\"");

    private static void Write(Utf8JsonWriter json, UffdFigures figures)
    {
        json.WriteStartObject();
        if (figures.SocketPath is not null) json.WriteString("socket_path", figures.SocketPath);
        if (figures.Image is not null) json.WriteString("image", figures.Image);
        if (figures.VmName is not null) json.WriteString("vm", figures.VmName);
        json.WriteNumber("process_id", figures.ProcessId);
        json.WriteStartObject("faults");
        foreach (var (outcome, count) in Outcomes(figures)) json.WriteNumber(outcome, count);
        json.WriteNumber("all", figures.FaultCount);
        json.WriteEndObject();
        json.WriteNumber("deferred", figures.DeferredCount);
        json.WriteNumber("removes", figures.RemoveCount);
        json.WriteNumber("source_errors", figures.SourceErrorCount);
        json.WriteNumber("queue_depth", figures.QueueDepth);
        json.WriteStartObject("bytes");
        foreach (var (path, count) in Paths(figures)) json.WriteNumber(path, count);
        json.WriteEndObject();
        json.WriteNumber("pages", figures.PageCount);
        json.WriteNumber("pages_present", figures.PresentPageCount);
        json.WriteNumber("pages_removed", figures.RemovedPageCount);
        json.WriteNumber("percent_present", Math.Round(figures.PercentPresent, 3));
        json.WriteStartObject("latency_us");
        foreach (var (quantile, time) in Quantiles(figures)) json.WriteNumber(quantile, time.TotalMicroseconds);
        json.WriteEndObject();
        if (figures.TimeToFirstPage is { } first) json.WriteNumber("time_to_first_page_us", first.TotalMicroseconds);
        if (figures.Error is not null) json.WriteString("error", figures.Error);
        if (figures.Vms.Count > 0)
        {
            json.WriteStartArray("vms");
            foreach (var vm in figures.Vms) Write(json, vm);
            json.WriteEndArray();
        }

        json.WriteEndObject();
    }

    private static (string Outcome, long Count)[] Outcomes(UffdFigures figures) =>
    [
        ("copied", figures.CopiedCount), ("zero", figures.ZeroCount), ("present", figures.PresentCount), ("continued", figures.ContinuedCount),
        ("write_protected", figures.WriteProtectedCount), ("poisoned", figures.PoisonedCount), ("failed", figures.FailedCount),
    ];

    private static (string Path, long Count)[] Paths(UffdFigures figures) =>
        [("fault", figures.FaultByteCount), ("window", figures.WindowByteCount), ("fill", figures.FillByteCount), ("fill_zero", figures.FillZeroByteCount)];

    private static (string Quantile, TimeSpan Time)[] Quantiles(UffdFigures figures) =>
        [("0.5", figures.LatencyP50), ("0.9", figures.LatencyP90), ("0.99", figures.LatencyP99), ("0.999", figures.LatencyP999), ("1", figures.LatencyMax)];

    private static void Head(StringBuilder text, string name, string type, string help)
    {
        text.Append(CultureInfo.InvariantCulture, $"# TYPE guestmemory_uffd_{name} {type}\n");
        if (name.EndsWith("_seconds", StringComparison.Ordinal)) text.Append(CultureInfo.InvariantCulture, $"# UNIT guestmemory_uffd_{name} seconds\n");
        text.Append(CultureInfo.InvariantCulture, $"# HELP guestmemory_uffd_{name} {help}\n");
    }

    private static void Sample(StringBuilder text, string name, string labels, double value) =>
        text.Append(CultureInfo.InvariantCulture, $"guestmemory_uffd_{name}{{{labels}}} {value:R}\n");

    private static string Escape(string value) =>
        value.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal);
}
