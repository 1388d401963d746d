using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// One bit a page, in memory of the caller that may be shared with other processes. Any number of threads sets and resets bits.
/// Unsafe: the caller keeps the memory mapped, and passes no page past the last one.
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
            ref var word = ref Part(ref first, end, out var mask);
            if ((Volatile.Read(ref word) & mask) != mask) Interlocked.Or(ref word, mask);
        }
    }

    public void Reset(ulong first, ulong count)
    {
        for (var end = first + count; first < end;)
        {
            ref var word = ref Part(ref first, end, out var mask);
            if ((Volatile.Read(ref word) & mask) != 0) Interlocked.And(ref word, ~mask);
        }
    }

    /// <summary>Moves every bit to another place. At any moment a bit is in the one, the other, or both.</summary>
    public void MoveTo(PageBits other)
    {
        for (ulong i = 0; i < (PageCount + 63) / 64; i++)
        {
            var bits = Volatile.Read(ref words[i]);
            if (bits == 0) continue;
            Interlocked.Or(ref other.WordAt(i), bits);
            Interlocked.And(ref words[i], ~bits);
        }
    }

    /// <summary>Sets every bit of this one in another place.</summary>
    public void CopyTo(PageBits other)
    {
        for (ulong i = 0; i < (PageCount + 63) / 64; i++)
        {
            if (Volatile.Read(ref words[i]) is var bits and not 0) Interlocked.Or(ref other.WordAt(i), bits);
        }
    }

    /// <summary>Sets the bits of some pages in words of which bit 0 is the first page.</summary>
    public void OrTo(ulong first, ulong count, Span<ulong> target)
    {
        var end = first + count;
        for (var at = Next(first, end, set: true); at < end; at = Next(at + 1, end, set: true)) target[(int)((at - first) >> 6)] |= 1UL << (int)((at - first) & 63);
    }

    /// <summary>How many pages from <paramref name="first"/> on are like it, at most <paramref name="limit"/>.</summary>
    public ulong Run(ulong first, ulong limit, out bool set)
    {
        set = IsSet(first);
        return Next(first, first + limit, !set) - first;
    }

    /// <summary>The next page that is set, or is not; <paramref name="end"/> where there is none before.</summary>
    public ulong Next(ulong first, ulong end, bool set) => BitScan.Next(words, first, end, set);

    public long Count() => Count(0, PageCount);

    /// <summary>How many of some pages are set. The first is a multiple of 64, and so is the end, unless all pages end there: what another process wrote behind the last one is not counted.</summary>
    public long Count(ulong first, ulong end) =>
        BitScan.Count(new ReadOnlySpan<ulong>(words + (first >> 6), checked((int)((end >> 6) - (first >> 6))))) + ((end & 63) == 0 ? 0 : BitOperations.PopCount(words[end >> 6] & MaskOf(end)));

    /// <summary>How many of the same are set in this one, in the other, or in both.</summary>
    public long CountWith(PageBits other, ulong first, ulong end)
    {
        long count = 0;
        for (var i = first >> 6; i < end >> 6; i++) count += BitOperations.PopCount(Volatile.Read(ref words[i]) | Volatile.Read(ref other.WordAt(i)));
        return (end & 63) == 0 ? count : count + BitOperations.PopCount((words[end >> 6] | other.WordAt(end >> 6)) & MaskOf(end));
    }

    private static ulong MaskOf(ulong end) => (1UL << (int)(end & 63)) - 1;

    /// <summary>The word that a page is in, the bits of it that lie before the end, and the page to go on with.</summary>
    private ref ulong Part(ref ulong first, ulong end, out ulong mask)
    {
        ref var word = ref words[first >> 6];
        mask = ulong.MaxValue << (int)(first & 63);
        first = (first | 63) + 1;
        if (first > end) mask &= ulong.MaxValue >> (int)(first - end);
        return ref word;
    }

    private ref ulong WordAt(ulong index) => ref words[index];
}
