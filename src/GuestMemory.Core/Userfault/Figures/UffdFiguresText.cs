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

    /// <summary>OpenMetrics text: totals of the handler, those that have ended among them, then each VM that is served, by its name.</summary>
    /// <param name="socketPath">Where the handler listens; the label of every sample.</param>
    /// <param name="figures">The figures of all its VMs.</param>
    public static string ToOpenMetrics(string socketPath, UffdFigures figures)
    {
        ArgumentNullException.ThrowIfNull(socketPath);
        ArgumentNullException.ThrowIfNull(figures);
        var text = new StringBuilder(4096);
        var handler = $"socket=\"{Escape(socketPath)}\"";
        Head(text, "faults", "counter", "Page faults that were answered.");
        foreach (var (outcome, count) in Outcomes(figures)) Sample(text, "faults_total", $"{handler},outcome=\"{outcome}\"", count);
        Head(text, "deferred", "counter", "Page faults that had to wait.");
        Sample(text, "deferred_total", handler, figures.DeferredCount);
        Head(text, "bytes", "counter", "Bytes that were brought in.");
        foreach (var (path, count) in Paths(figures)) Sample(text, "bytes_total", $"{handler},path=\"{path}\"", count);
        Head(text, "removes", "counter", "Removals that VMs reported.");
        Sample(text, "removes_total", handler, figures.RemoveCount);
        Head(text, "source_errors", "counter", "Times that the source could not be read.");
        Sample(text, "source_errors_total", handler, figures.SourceErrorCount);
        Head(text, "vms", "gauge", "VMs that are served.");
        Sample(text, "vms", handler, figures.Vms.Count);
        Head(text, "queue_depth", "gauge", "Page faults that are read and not answered.");
        Sample(text, "queue_depth", handler, figures.QueueDepth);
        Head(text, "latency_seconds", "histogram", "From reading a fault to its answer.");
        long recorded = 0;
        for (var i = 0; i < figures.LatencyCounts.Count; i++)
        {
            recorded += figures.LatencyCounts[i];
            var bound = i < UffdFigures.LatencyBounds.Count ? UffdFigures.LatencyBounds[i].TotalSeconds.ToString(CultureInfo.InvariantCulture) : "+Inf";
            Sample(text, "latency_seconds_bucket", $"{handler},le=\"{bound}\"", recorded);
        }

        Sample(text, "latency_seconds_count", handler, recorded);
        Sample(text, "latency_seconds_sum", handler, figures.LatencySum.TotalSeconds);
        Head(text, "latency_max_seconds", "gauge", "The longest time from reading a fault to its answer.");
        Sample(text, "latency_max_seconds", handler, figures.LatencyMax.TotalSeconds);
        Head(text, "present_ratio", "gauge", "How much of a VM's memory has come.");
        foreach (var vm in figures.Vms) Sample(text, "present_ratio", Labels(handler, vm), vm.PercentPresent / 100);
        Head(text, "vm_faults", "counter", "Page faults of a VM that were answered.");
        foreach (var vm in figures.Vms) Sample(text, "vm_faults_total", Labels(handler, vm), vm.FaultCount);
        Head(text, "vm_bytes", "counter", "Bytes of the image that were brought in for a VM.");
        foreach (var vm in figures.Vms) Sample(text, "vm_bytes_total", Labels(handler, vm), vm.ByteCount);
        Head(text, "vm_poisoned", "counter", "Pages of a VM that were poisoned.");
        foreach (var vm in figures.Vms) Sample(text, "vm_poisoned_total", Labels(handler, vm), vm.PoisonedCount);
        return text.Append("# EOF\n").ToString();
    }

    private static string Labels(string handler, UffdFigures vm) =>
        string.Create(CultureInfo.InvariantCulture, $"{handler},vm=\"{Escape(vm.VmName ?? "")}\",pid=\"{vm.ProcessId}\"");

    private static void Write(Utf8JsonWriter json, UffdFigures figures)
    {
        json.WriteStartObject();
        if (figures.SocketPath is not null) json.WriteString("socket_path", figures.SocketPath);
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
