using System.Diagnostics;
using System.Diagnostics.Metrics;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The figures of a handler as instruments of a meter (<see cref="UffdHandler.MeterName"/>), for whatever listens in this process: dotnet-counters,
/// OpenTelemetry, and the handler's own <see cref="MetricsEndpoint"/>. All of them are observable: nothing is measured for them while faults are answered, the
/// figures are read when a listener asks.
/// </summary>
internal sealed class UffdMeter : IDisposable
{
    // Listeners ask one instrument after the other, and are to get figures of one moment.
    private static readonly TimeSpan s_moment = TimeSpan.FromMilliseconds(50);

    private readonly Meter _meter = new(UffdHandler.MeterName);
    private readonly KeyValuePair<string, object?> _strategy;
    private readonly Func<IReadOnlyList<UffdFigures>> _ask;
    private readonly Lock _lock = new();
    private OpenMetricsText? _text;
    private IReadOnlyList<UffdFigures>? _images;
    private long _askedAt;

    /// <param name="strategy">How it answers faults: the tag "strategy".</param>
    /// <param name="images">
    /// Gives the figures of the VMs of each image, whose socket and name are the tags "socket" and "image" of every measurement; called on the thread of a listener.
    /// </param>
    public UffdMeter(UffdStrategy strategy, Func<IReadOnlyList<UffdFigures>> images)
    {
        _strategy = new(OpenMetricsText.Untold, strategy.ToString());
        _ask = images;
        Counter("faults", "{fault}", "Page faults that were answered.", static all => UffdFiguresText.Outcomes(all).Select(static entry => (entry.Count, Tag("outcome", entry.Outcome))));
        Counter("deferred", "{fault}", "Page faults that had to wait.", static all => One(all.DeferredCount));
        Counter("bytes", "By", "Bytes that were brought in.", static all => UffdFiguresText.Paths(all).Select(static entry => (entry.Count, Tag("path", entry.Path))));
        Counter("removes", "{removal}", "Removals that VMs reported.", static all => One(all.RemoveCount));
        Counter("source.errors", "{error}", "Times that the source could not be read.", static all => One(all.SourceErrorCount));
        _ = _meter.CreateObservableUpDownCounter(NameOf("vms"), () => Measure(static all => One<long>(all.Vms.Count)), "{vm}", "VMs that are served.");
        _ = _meter.CreateObservableUpDownCounter(NameOf("queue.depth"), () => Measure(static all => One(all.QueueDepth)), "{fault}", "Page faults that are read and not answered.");
        // There is no observable histogram: a counter for each bucket, which counts those below it too, and one each for the number and the sum.
        Counter("latency.bucket", "{fault}", "From reading a fault to its answer.", Buckets);
        Counter("latency.count", "{fault}", "From reading a fault to its answer.", static all => One(all.LatencyCounts.Sum()));
        _ = _meter.CreateObservableCounter(NameOf("latency.sum"), () => Measure(static all => One(all.LatencySum.TotalSeconds)), "s", "From reading a fault to its answer.");
        _ = _meter.CreateObservableGauge(NameOf("latency.max"), () => Measure(static all => One(all.LatencyMax.TotalSeconds)), "s", "The longest time from reading a fault to its answer.");
        _ = _meter.CreateObservableGauge(NameOf("present"), () => Measure(static all => OfVms(all, static vm => vm.PercentPresent / 100)), "1", "How much of a VM's memory has come.");
        Counter("vm.faults", "{fault}", "Page faults of a VM that were answered.", static all => OfVms(all, static vm => vm.FaultCount));
        Counter("vm.bytes", "By", "Bytes of the image that were brought in for a VM.", static all => OfVms(all, static vm => vm.ByteCount));
        Counter("vm.poisoned", "{page}", "Pages of a VM that were poisoned.", static all => OfVms(all, static vm => vm.PoisonedCount));
    }

    /// <summary>What the instruments measure now, as OpenMetrics text. For one thread at a time.</summary>
    public string ToOpenMetrics()
    {
        lock (_lock) _images = null;
        // Most handlers have no endpoint, and nothing listens there.
        _text ??= new OpenMetricsText(_meter);
        return _text.Read();
    }

    public void Dispose()
    {
        _text?.Dispose();
        _meter.Dispose();
    }

    private static string NameOf(string name) => $"guestmemory.uffd.{name}";

    private static KeyValuePair<string, object?>[] Tag(string name, object value) => [new(name, value)];

    private static IEnumerable<(T Value, KeyValuePair<string, object?>[] Tags)> One<T>(T value) => [(value, [])];

    private static IEnumerable<(T Value, KeyValuePair<string, object?>[] Tags)> OfVms<T>(UffdFigures all, Func<UffdFigures, T> value) =>
        all.Vms.Select(vm => (value(vm), new KeyValuePair<string, object?>[] { new("vm", vm.VmName ?? ""), new("pid", vm.ProcessId) }));

    private static IEnumerable<(long Value, KeyValuePair<string, object?>[] Tags)> Buckets(UffdFigures all)
    {
        long below = 0;
        for (var i = 0; i < all.LatencyCounts.Count; i++)
        {
            below += all.LatencyCounts[i];
            yield return (below, Tag(OpenMetricsText.Bound, i < UffdFigures.LatencyBounds.Count ? UffdFigures.LatencyBounds[i].TotalSeconds : double.PositiveInfinity));
        }
    }

    private void Counter(string name, string unit, string description, Func<UffdFigures, IEnumerable<(long Value, KeyValuePair<string, object?>[] Tags)>> values) =>
        _ = _meter.CreateObservableCounter(NameOf(name), () => Measure(values), unit, description);

    private IEnumerable<Measurement<T>> Measure<T>(Func<UffdFigures, IEnumerable<(T Value, KeyValuePair<string, object?>[] Tags)>> values)
        where T : struct => Now().SelectMany(image => values(image).Select(entry => new Measurement<T>(entry.Value, [new("socket", image.SocketPath ?? ""), new("image", image.Image ?? ""), _strategy, .. entry.Tags])));

    private IReadOnlyList<UffdFigures> Now()
    {
        lock (_lock)
        {
            if (_images is not null && Stopwatch.GetElapsedTime(_askedAt) < s_moment) return _images;
            _images = _ask();
            _askedAt = Stopwatch.GetTimestamp();
            return _images;
        }
    }
}
