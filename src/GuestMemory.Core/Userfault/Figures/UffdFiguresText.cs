using System.Buffers;
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
        using var meter = new UffdMeter(default, () => images);
        return meter.ToOpenMetrics();
    }

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

    internal static (string Outcome, long Count)[] Outcomes(UffdFigures figures) =>
    [
        ("copied", figures.CopiedCount), ("zero", figures.ZeroCount), ("present", figures.PresentCount), ("continued", figures.ContinuedCount),
        ("write_protected", figures.WriteProtectedCount), ("poisoned", figures.PoisonedCount), ("failed", figures.FailedCount),
    ];

    internal static (string Path, long Count)[] Paths(UffdFigures figures) =>
        [("fault", figures.FaultByteCount), ("window", figures.WindowByteCount), ("fill", figures.FillByteCount), ("fill_zero", figures.FillZeroByteCount)];

    private static (string Quantile, TimeSpan Time)[] Quantiles(UffdFigures figures) =>
        [("0.5", figures.LatencyP50), ("0.9", figures.LatencyP90), ("0.99", figures.LatencyP99), ("0.999", figures.LatencyP999), ("1", figures.LatencyMax)];
}
