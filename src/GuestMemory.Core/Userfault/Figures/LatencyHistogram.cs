using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Latencies, counted in buckets that are at most 1/16 wide: percentiles are right to about 6 %, in 8 KiB, without allocating.
/// One thread records; any may read.
/// </summary>
internal sealed unsafe class LatencyHistogram
{
    private const int SubBits = 4;
    private const int Buckets = (64 - SubBits + 1) << SubBits;

    // The counts, then the longest. Memory of the VM's state, or pinned memory of this object's own.
    private readonly long* _counts;
    private readonly long* _max;
    private readonly long[]? _own;

    /// <summary>An empty histogram of its own.</summary>
    public LatencyHistogram()
    {
        _own = GC.AllocateArray<long>(Words, pinned: true);
        _counts = (long*)Unsafe.AsPointer(ref _own[0]);
        _max = _counts + Buckets;
    }

    /// <summary>A histogram in <see cref="Words"/> numbers that the caller has mapped, and keeps mapped.</summary>
    public LatencyHistogram(long* words)
    {
        _counts = words;
        _max = words + Buckets;
    }

    /// <summary>How many numbers a histogram takes.</summary>
    public static int Words => Buckets + 1;

    /// <summary>The longest latency, exactly.</summary>
    public TimeSpan Max => TimeSpan.FromTicks(Math.Max(0, Volatile.Read(ref *_max)) / TimeSpan.NanosecondsPerTick);

    public void Record(long nanoseconds)
    {
        _counts[Bucket((ulong)nanoseconds)]++;
        if (nanoseconds > *_max) Volatile.Write(ref *_max, nanoseconds);
    }

    /// <summary>Adds everything recorded in another histogram.</summary>
    public void Add(LatencyHistogram other)
    {
        for (var i = 0; i < Buckets; i++) _counts[i] += Volatile.Read(ref other._counts[i]);
        *_max = Math.Max(*_max, Volatile.Read(ref *other._max));
        GC.KeepAlive(other);
        GC.KeepAlive(_own);
    }

    /// <summary>The latency that a fraction (0 to 1) of all stay at or below; zero where nothing was recorded.</summary>
    public TimeSpan Percentile(double fraction)
    {
        long total = 0;
        for (var i = 0; i < Buckets; i++) total += Volatile.Read(ref _counts[i]);
        if (total == 0) return TimeSpan.Zero;
        var rank = Math.Max(1, (long)Math.Ceiling(total * fraction));
        for (var i = 0; i < Buckets; i++)
        {
            rank -= Volatile.Read(ref _counts[i]);
            if (rank <= 0) return TimeSpan.FromTicks(Math.Max(0, Math.Min(Middle(i), Volatile.Read(ref *_max))) / TimeSpan.NanosecondsPerTick);
        }

        GC.KeepAlive(_own);
        return Max;
    }

    /// <summary>The sum of all latencies, to about 3 %.</summary>
    public TimeSpan Sum
    {
        get
        {
            double nanoseconds = 0;
            for (var i = 0; i < Buckets; i++) nanoseconds += (double)Middle(i) * Volatile.Read(ref _counts[i]);
            GC.KeepAlive(_own);
            return TimeSpan.FromTicks((long)(nanoseconds / TimeSpan.NanosecondsPerTick));
        }
    }

    /// <summary>How many latencies stayed at or below each of some bounds, which ascend, and above the one before; and how many were longer than all.</summary>
    public long[] CountBetween(IReadOnlyList<TimeSpan> bounds)
    {
        var counts = new long[bounds.Count + 1];
        for (int i = 0, at = 0; i < Buckets; i++)
        {
            while (at < bounds.Count && Middle(i) > bounds[at].Ticks * TimeSpan.NanosecondsPerTick) at++;
            counts[at] += Volatile.Read(ref _counts[i]);
        }

        GC.KeepAlive(_own);
        return counts;
    }

    private static int Bucket(ulong value)
    {
        if (value < 1 << SubBits) return (int)value;
        var exponent = BitOperations.Log2(value);
        return (exponent - SubBits + 1 << SubBits) + (int)(value >> exponent - SubBits & (1 << SubBits) - 1);
    }

    private static long Middle(int bucket)
    {
        if (bucket < 1 << SubBits) return bucket;
        var shift = (bucket >> SubBits) - 1;
        var low = (long)((1 << SubBits) + (bucket & (1 << SubBits) - 1)) << shift;
        return low + ((1L << shift) >> 1);
    }
}
