namespace GuestMemory.Core;

/// <summary>
/// Measures how fast memory is written, from bitmaps that are taken at intervals: the rate, the working set, where most is written, and how a
/// live migration would go. For one thread at a time.
/// </summary>
/// <remarks>
/// Pages that are written again and again are copied once a round, so that a rate alone says little of rounds that are longer than the
/// interval. So the meter also counts the pages that differ within 2, 4, 8... intervals; <see cref="DirtySizeWithin"/> connects these figures.
/// </remarks>
/// <param name="hottest">How many of the hottest ranges a sample lists.</param>
public sealed class DirtyRateMeter(int hottest = 3)
{
    // Of what is left, QEMU copies for so long before it looks again what was written.
    private const double ShortestRound = 0.05;
    private const int MaxRounds = 10_000;

    private readonly List<Window> _windows = [];
    private readonly DirtyPages _workingSet = new();
    private readonly Dictionary<DirtyPages.Key, float[]> _heat = [];

    /// <summary>What tracked the writes; empty before the first sample.</summary>
    public string Source { get; private set; } = "";

    /// <summary>How many intervals were measured.</summary>
    public int SampleCount { get; private set; }

    /// <summary>The length of all intervals together.</summary>
    public TimeSpan Duration { get; private set; }

    /// <summary>The bytes of all the memory, of the last sample.</summary>
    public ulong ByteSize { get; private set; }

    /// <summary>The bytes of all pages that were written at least once.</summary>
    public ulong WorkingSet => _workingSet.Size;

    /// <summary>The bytes of pages that were written a second, by intervals: a page that was written in two intervals counts twice.</summary>
    public double Rate => _windows.Count == 0 ? 0 : _windows[0].Bytes / _windows[0].Seconds;

    /// <summary>Takes what was written in an interval.</summary>
    /// <param name="bitmaps">The bitmaps of all the memory, whose marks were taken with them.</param>
    /// <param name="interval">The time since the marks were taken before; more than zero.</param>
    public DirtySample Add(IReadOnlyList<DirtyBitmap> bitmaps, TimeSpan interval)
    {
        ArgumentNullException.ThrowIfNull(bitmaps);
        ArgumentOutOfRangeException.ThrowIfLessThanOrEqual(interval, TimeSpan.Zero);
        var pages = new DirtyPages(bitmaps);
        Source = bitmaps.Count switch { 0 => Source, 1 => bitmaps[0].Source, var count => $"{bitmaps[0].Source} and {count - 1} more" };
        ByteSize = bitmaps.Aggregate(0UL, static (sum, bitmap) => sum + bitmap.ByteSize);
        SampleCount++;
        Duration += interval;
        _workingSet.Add(pages);
        Carry(pages, interval.TotalSeconds);
        return new DirtySample(Source, interval, ByteSize, bitmaps.Sum(static bitmap => bitmap.DirtyCount), pages.Size, Hottest(bitmaps));
    }

    /// <summary>The bytes of the pages that are written at least once within a time: as measured, and by the last trend beyond what was measured.</summary>
    /// <param name="time">The time.</param>
    public double DirtySizeWithin(TimeSpan time) => WithinSeconds(time.TotalSeconds);

    /// <summary>
    /// How a live migration (pre-copy, as QEMU's) would go: it copies all memory, then what was written meanwhile, until what is left
    /// can be copied within the downtime; the VM stands still for that.
    /// </summary>
    /// <param name="bandwidth">The bytes that it copies a second; more than zero.</param>
    /// <param name="downtimeLimit">How long the VM may stand still; QEMU's default is 300 ms.</param>
    /// <param name="firstRound">The bytes that the first round copies; null: all memory. Pages of zeros cost QEMU next to nothing.</param>
    /// <exception cref="InvalidOperationException">Nothing was measured.</exception>
    public MigrationForecast Forecast(double bandwidth, TimeSpan downtimeLimit, ulong? firstRound = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(bandwidth);
        ArgumentOutOfRangeException.ThrowIfLessThan(downtimeLimit, TimeSpan.Zero);
        if (SampleCount == 0) throw new InvalidOperationException("Nothing was measured.");
        var limit = bandwidth * downtimeLimit.TotalSeconds;
        double left = firstRound ?? ByteSize, copied = 0;
        var (rounds, converges) = (1, true);
        while (left > limit && converges && rounds < MaxRounds)
        {
            var round = Math.Min(left, Math.Max(left - limit, bandwidth * ShortestRound));
            copied += round;
            left -= round;
            // A part of what is written now is left from before. Both are taken to be spread evenly over all that was written until now, in the first round over all memory.
            var before = rounds == 1 ? ByteSize : WithinSeconds(copied / bandwidth);
            var written = WithinSeconds(round / bandwidth) * (1 - (before == 0 ? 0 : Math.Min(1, left / before)));
            left += written;
            converges = written < round || left <= limit;
            rounds++;
        }

        var total = copied + left;
        return new MigrationForecast(bandwidth, downtimeLimit, left <= limit, rounds, Seconds(total / bandwidth), (ulong)total, Seconds(left / bandwidth));

        static TimeSpan Seconds(double seconds) => TimeSpan.FromSeconds(Math.Round(Math.Min(seconds, TimeSpan.MaxValue.TotalSeconds / 2), 6));
    }

    private double WithinSeconds(double seconds)
    {
        var points = _windows.Where(static window => window.Count > 0).Select(static window => (Seconds: window.Seconds / window.Count, Bytes: window.Bytes / window.Count)).ToList();
        if (points.Count > 0 && Duration.TotalSeconds > points[^1].Seconds) points.Add((Duration.TotalSeconds, WorkingSet));
        var (from, before) = ((Seconds: 0.0, Bytes: 0.0), (Seconds: 0.0, Bytes: 0.0));
        foreach (var point in points)
        {
            (before, from) = (from, point);
            if (seconds <= point.Seconds) break;
        }

        if (from.Seconds <= before.Seconds) return from.Bytes;
        var slope = Math.Max(0, (from.Bytes - before.Bytes) / (from.Seconds - before.Seconds));
        return Math.Min(ByteSize, before.Bytes + (slope * (seconds - before.Seconds)));
    }

    /// <summary>Counts as a binary number does: two windows of one length, one after the other, make one of twice the length.</summary>
    private void Carry(DirtyPages pages, double seconds)
    {
        for (var i = 0; ; i++)
        {
            if (i == _windows.Count) _windows.Add(new Window());
            var window = _windows[i];
            window.Count++;
            window.Seconds += seconds;
            window.Bytes += pages.Size;
            if (window.Pending is not { } former)
            {
                window.Pending = pages;
                window.PendingSeconds = seconds;
                return;
            }

            window.Pending = null;
            former.Add(pages);
            pages = former;
            seconds += window.PendingSeconds;
        }
    }

    /// <summary>The hottest ranges: runs of words of the bitmaps (64 pages each) that are at least half as hot as the hottest one.</summary>
    private List<AddressRange> Hottest(IReadOnlyList<DirtyBitmap> bitmaps)
    {
        if (hottest == 0) return [];
        var hottestWord = 0f;
        foreach (var bitmap in bitmaps)
        {
            var words = bitmap.AsWords();
            if (!_heat.TryGetValue(DirtyPages.KeyOf(bitmap), out var heat)) _heat.Add(DirtyPages.KeyOf(bitmap), heat = new float[words.Length]);
            for (var i = 0; i < heat.Length; i++)
            {
                var share = 64f / Math.Min(64, bitmap.PageCount - (i * 64L));
                heat[i] = (heat[i] / 2) + (System.Numerics.BitOperations.PopCount(words[i]) * share);
                hottestWord = Math.Max(hottestWord, heat[i]);
            }
        }

        var ranges = new List<(AddressRange Range, float Heat)>();
        if (hottestWord == 0) return [];
        foreach (var bitmap in bitmaps) AddRanges(bitmap, _heat[DirtyPages.KeyOf(bitmap)], hottestWord / 2, ranges);
        return [.. ranges.OrderByDescending(static range => range.Heat).Take(hottest).Select(static range => range.Range)];
    }

    private static void AddRanges(DirtyBitmap bitmap, float[] heat, float least, List<(AddressRange Range, float Heat)> ranges)
    {
        for (var first = 0; first < heat.Length; first++)
        {
            if (heat[first] < least) continue;
            var (end, sum) = (first, 0f);
            for (; end < heat.Length && heat[end] >= least; end++) sum += heat[end];
            var offset = (ulong)first * 64 * bitmap.PageSize;
            var pages = Math.Min(bitmap.PageCount, end * 64L) - (first * 64L);
            ranges.Add((new AddressRange(bitmap.StartAddress + offset, Math.Min((ulong)pages * bitmap.PageSize, bitmap.ByteSize - offset), pages), sum));
            first = end;
        }
    }

    private sealed class Window
    {
        public int Count { get; set; }

        public double Seconds { get; set; }

        public double Bytes { get; set; }

        public DirtyPages? Pending { get; set; }

        public double PendingSeconds { get; set; }
    }
}
