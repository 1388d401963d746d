using System.Diagnostics;

namespace GuestMemory.Core.Userfault;

/// <summary>Touches the pages of a memory as a VM would, and measures what that takes.</summary>
public static class UffdTouch
{
    private const int FaultNanoseconds = 5000;
    private static readonly TimeSpan s_look = TimeSpan.FromMilliseconds(50);

    /// <summary>Touches pages until all are done.</summary>
    /// <param name="memory">The memory, connected to a handler.</param>
    /// <param name="options">Which pages, how, and by how many threads.</param>
    /// <param name="cancellation">Ends it; a thread that waits for a page is left to itself.</param>
    /// <exception cref="GuestMemoryException">HandlerGone: the handler has hung up, and a page is missing; ValueNotSupported.</exception>
    public static UffdTouchResult Run(GuestMemoryMmap memory, UffdTouchOptions options, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(options);
        if (options.ThreadCount is < 1 or > 256 || options.Stride < 1 || options.Count < 0)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Pages are touched by 1 to 256 threads, with a stride of at least 1.");
        var pages = Order(memory, options);
        var over = new CancellationTokenSource();
        var workers = Enumerable.Range(0, options.ThreadCount).Select(index => new Worker(pages, index, options.ThreadCount, over.Token)).ToArray();
        var started = Stopwatch.GetTimestamp();
        foreach (var worker in workers) worker.Thread.Start();
        try
        {
            foreach (var worker in workers)
            {
                while (!worker.Thread.Join(s_look))
                {
                    cancellation.ThrowIfCancellationRequested();
                    if (memory.Regions.Select(region => region.Memory.GoneHolder).FirstOrDefault(gone => gone is not null) is { } holder)
                        throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"A page is missing, and {holder}, which would serve it, has closed the connection.");
                }
            }
        }
        finally
        {
            // Not disposed: a thread that is left behind may still look at it.
            over.Cancel();
        }

        return Sum(workers, Stopwatch.GetElapsedTime(started));
    }

    private static UffdTouchResult Sum(Worker[] workers, TimeSpan duration)
    {
        var all = new LatencyHistogram();
        foreach (var worker in workers) all.Add(worker.Latency);
        return new UffdTouchResult
        {
            TouchCount = workers.Sum(worker => worker.Touches),
            FaultCount = workers.Sum(worker => worker.Faults),
            ErrorCount = workers.Sum(worker => worker.Errors),
            FirstTouch = workers[0].First,
            LatencyP50 = all.Percentile(0.5),
            LatencyP90 = all.Percentile(0.9),
            LatencyP99 = all.Percentile(0.99),
            LatencyP999 = all.Percentile(0.999),
            LatencyMax = all.Max,
            Duration = duration,
        };
    }

    private static (MmapRegion Region, ulong Offset)[] Order(GuestMemoryMmap memory, UffdTouchOptions options)
    {
        var pages = new List<(MmapRegion, ulong)>();
        foreach (var region in memory.Regions)
        {
            for (ulong offset = 0; offset < region.Size; offset += region.PageSize) pages.Add((region.GetMmapRegion(), offset));
        }

        var order = pages.ToArray();
        if (options.Pattern == UffdTouchPattern.Random) new Random(options.Seed).Shuffle(order);
        else if (options.Pattern == UffdTouchPattern.Strided) order = [.. Enumerable.Range(0, Math.Min(options.Stride, order.Length)).SelectMany(first => Every(pages, first, options.Stride))];
        return options.Count > 0 && options.Count < order.Length ? order[..(int)options.Count] : order;
    }

    private static IEnumerable<(MmapRegion Region, ulong Offset)> Every(List<(MmapRegion Region, ulong Offset)> pages, int first, int stride)
    {
        for (var i = first; i < pages.Count; i += stride) yield return pages[i];
    }

    /// <summary>One of the VM's processors.</summary>
    private sealed class Worker
    {
        private readonly (MmapRegion Region, ulong Offset)[] _pages;
        private readonly int _first;
        private readonly int _step;
        private readonly CancellationToken _over;

        public Worker((MmapRegion Region, ulong Offset)[] pages, int first, int step, CancellationToken over)
        {
            (_pages, _first, _step, _over) = (pages, first, step, over);
            Thread = new Thread(Run) { IsBackground = true, Name = "guest-memory-touch" };
        }

        public Thread Thread { get; }

        public LatencyHistogram Latency { get; } = new();

        public TimeSpan First { get; private set; }

        public long Touches { get; private set; }

        public long Faults { get; private set; }

        public long Errors { get; private set; }

        private void Run()
        {
            try
            {
                Span<byte> value = stackalloc byte[1];
                for (var i = _first; i < _pages.Length && !_over.IsCancellationRequested; i += _step) Touch(_pages[i], value);
            }
            catch (GuestMemoryException)
            {
                // The region was removed meanwhile.
                Errors++;
            }
        }

        private void Touch((MmapRegion Region, ulong Offset) page, Span<byte> value)
        {
            var before = Stopwatch.GetTimestamp();
            var read = page.Region.TryRead(page.Offset, value, out _);
            var took = Stopwatch.GetTimestamp() - before;
            if (Touches++ == 0) First = TimeSpan.FromTicks(took / TimeSpan.NanosecondsPerTick);
            if (read == 0) Errors++;
            if (took < FaultNanoseconds) return;
            Faults++;
            Latency.Record(took);
        }
    }
}
