using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// One bit a page in memory of somebody else, which may be shared with other processes. Bits are only ever set, by any number of
/// threads. Unsafe: whoever holds this keeps the memory mapped, and asks for no page past the last.
/// </summary>
internal readonly unsafe struct PageBits(ulong* words, ulong pageCount)
{
    public ulong PageCount { get; } = pageCount;

    /// <summary>The bytes that so many bits need, in whole cache lines.</summary>
    public static ulong SizeOf(ulong pageCount) => (pageCount + 511) / 512 * 64;

    public bool IsSet(ulong page) => (Volatile.Read(ref words[page >> 6]) >> (int)(page & 63) & 1) != 0;

    public void Set(ulong page)
    {
        if (!IsSet(page)) Interlocked.Or(ref words[page >> 6], 1UL << (int)(page & 63));
    }

    public void Set(ulong first, ulong count)
    {
        for (var end = first + count; first < end;)
        {
            var mask = ulong.MaxValue << (int)(first & 63);
            var next = (first | 63) + 1;
            if (next > end) mask &= ulong.MaxValue >> (int)(next - end);
            ref var word = ref words[first >> 6];
            if ((Volatile.Read(ref word) & mask) != mask) Interlocked.Or(ref word, mask);
            first = next;
        }
    }

    /// <summary>How many pages from <paramref name="first"/> on are like it, at most <paramref name="limit"/>.</summary>
    public ulong Run(ulong first, ulong limit, out bool set)
    {
        set = IsSet(first);
        return Next(first, first + limit, !set) - first;
    }

    /// <summary>The next page that is set, or is not; <paramref name="end"/> where there is none before.</summary>
    public ulong Next(ulong first, ulong end, bool set)
    {
        while (first < end)
        {
            var word = Volatile.Read(ref words[first >> 6]);
            if (!set) word = ~word;
            word &= ulong.MaxValue << (int)(first & 63);
            if (word != 0) return Math.Min(end, (first & ~63UL) + (ulong)BitOperations.TrailingZeroCount(word));
            first = (first | 63) + 1;
        }

        return end;
    }

    public long Count() => BitScan.Count(new ReadOnlySpan<ulong>(words, checked((int)((PageCount + 63) / 64))));

    /// <summary>How many are set here or there.</summary>
    public long CountWith(PageBits other)
    {
        long count = 0;
        for (ulong i = 0; i < (PageCount + 63) / 64; i++) count += BitOperations.PopCount(Volatile.Read(ref words[i]) | Volatile.Read(ref other.WordAt(i)));
        return count;
    }

    private ref ulong WordAt(ulong index) => ref words[index];
}
