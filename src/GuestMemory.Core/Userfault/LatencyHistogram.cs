using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// Latencies, counted in buckets that are at most 1/16 wide: percentiles are right to about 6 %, in 8 KiB, without allocating.
/// One thread records; any may read.
/// </summary>
internal sealed class LatencyHistogram
{
    private const int SubBits = 4;
    private readonly long[] _counts = new long[(64 - SubBits + 1) << SubBits];
    private long _max;

    /// <summary>The longest latency, exactly.</summary>
    public TimeSpan Max => TimeSpan.FromTicks(Volatile.Read(ref _max) / TimeSpan.NanosecondsPerTick);

    public void Record(long nanoseconds)
    {
        _counts[Bucket((ulong)nanoseconds)]++;
        if (nanoseconds > _max) Volatile.Write(ref _max, nanoseconds);
    }

    /// <summary>Adds everything recorded in another histogram.</summary>
    public void Add(LatencyHistogram other)
    {
        for (var i = 0; i < _counts.Length; i++) _counts[i] += Volatile.Read(ref other._counts[i]);
        _max = Math.Max(_max, Volatile.Read(ref other._max));
    }

    /// <summary>The latency that a fraction (0 to 1) of all stay at or below; zero where nothing was recorded.</summary>
    public TimeSpan Percentile(double fraction)
    {
        long total = 0;
        for (var i = 0; i < _counts.Length; i++) total += Volatile.Read(ref _counts[i]);
        if (total == 0) return TimeSpan.Zero;
        var rank = Math.Max(1, (long)Math.Ceiling(total * fraction));
        for (var i = 0; i < _counts.Length; i++)
        {
            rank -= Volatile.Read(ref _counts[i]);
            if (rank <= 0) return TimeSpan.FromTicks(Math.Min(Middle(i), Volatile.Read(ref _max)) / TimeSpan.NanosecondsPerTick);
        }

        return Max;
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
