using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace GuestMemory.Core;

/// <content>Reading, taking and resetting bits.</content>
public sealed unsafe partial class AtomicBitmap
{
    private const int Block = 64;

    /// <summary>The number of dirty pages.</summary>
    public long CountDirty() => BitScan.Count(Words);

    /// <summary>Whether any page is dirty.</summary>
    public bool Any() => BitScan.Any(Words);

    /// <summary>
    /// The dirty pages in ascending order. Where the buffer is full there may be more: continue at the last page + 1.
    /// </summary>
    /// <param name="pages">Receives the numbers of the pages; the rest of the buffer is undefined.</param>
    /// <param name="from">The first page to look at.</param>
    /// <returns>The number of entries written.</returns>
    public int ListPages(Span<long> pages, long from = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(from);
        var count = BitScan.ListPages(Words, from, pages);
        Volatile.ReadBarrier();
        return count;
    }

    /// <summary>
    /// The runs of dirty pages in ascending order, each as long as can be. Where the buffer is full there may be more:
    /// continue at the last run's <see cref="PageRun.End"/>.
    /// </summary>
    /// <param name="runs">Receives the runs; the rest of the buffer is undefined.</param>
    /// <param name="from">The first page to look at; a run that contains it is reported from it on.</param>
    /// <returns>The number of entries written.</returns>
    public int ListRuns(Span<PageRun> runs, long from = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(from);
        var count = BitScan.ListRuns(Words, from, runs);
        Volatile.ReadBarrier();
        return count;
    }

    /// <summary>A copy of the bits as they are.</summary>
    public ulong[] Snapshot()
    {
        var words = GC.AllocateUninitializedArray<ulong>(WordCount);
        Snapshot(words);
        return words;
    }

    /// <summary>Copies the bits as they are.</summary>
    /// <param name="words">As many as <see cref="WordCount"/>.</param>
    public void Snapshot(Span<ulong> words)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(words.Length, WordCount, nameof(words));
        Words.CopyTo(words);
        Volatile.ReadBarrier();
    }

    /// <summary>Takes the bits: every mark is either in the result or still in the bitmap, never lost. Atomic word by word.</summary>
    public ulong[] GetAndReset()
    {
        var taken = GC.AllocateUninitializedArray<ulong>(WordCount);
        GetAndReset(taken);
        return taken;
    }

    /// <summary>Takes the bits into a buffer: every mark is either in it or still in the bitmap, never lost. Atomic word by word.</summary>
    /// <param name="taken">As many words as <see cref="WordCount"/>.</param>
    public void GetAndReset(Span<ulong> taken)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(taken.Length, WordCount, nameof(taken));
        var any = 0UL;
        var at = 0;
        fixed (ulong* from = Words)
        fixed (ulong* to = taken)
        {
            // 64 words at once: the dirty ones are found without a branch for each, and only they are exchanged.
            for (; at + Block <= taken.Length; at += Block)
            {
                for (var i = 0; i < Block; i += 2 * Vector512<ulong>.Count)
                {
                    Vector512<ulong>.Zero.Store(to + at + i);
                    Vector512<ulong>.Zero.Store(to + at + i + Vector512<ulong>.Count);
                }

                if (IsClean(from + at)) continue;
                var dirty = 0UL;
                for (var i = 0; i < Block; i += Vector512<ulong>.Count)
                {
                    var clean = Vector512.Equals(Vector512.Load(from + at + i), Vector512<ulong>.Zero);
                    dirty |= (clean.ExtractMostSignificantBits() ^ 255) << i;
                }

                any |= dirty;
                for (; dirty != 0; dirty &= dirty - 1)
                {
                    var word = at + BitOperations.TrailingZeroCount(dirty);
                    to[word] = Interlocked.Exchange(ref from[word], 0);
                }
            }

            for (; at < taken.Length; at++)
            {
                any |= to[at] = Volatile.Read(ref from[at]) == 0 ? 0 : Interlocked.Exchange(ref from[at], 0);
            }
        }

        if (any != 0) Interlocked.MemoryBarrierProcessWide();
    }

    /// <summary>Makes every page clean.</summary>
    public void Reset()
    {
        if (!Any()) return;
        Words.Clear();
        Interlocked.MemoryBarrierProcessWide();
    }

    /// <summary>Makes a page clean; one past the end is ignored. <see cref="ResetRange"/> resets many pages at less cost.</summary>
    /// <param name="page">The number of the page.</param>
    public void ResetBit(long page)
    {
        if (!IsBitSet(page)) return;
        Interlocked.And(ref Words[(int)(page >> 6)], ~(1UL << (int)(page & 63)));
        Interlocked.MemoryBarrierProcessWide();
    }

    /// <summary>Makes every page clean that the bytes touch. Bytes past the end are ignored; a length of 0 changes nothing.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">The number of bytes; cut at the end of the bitmap.</param>
    public void ResetRange(ulong offset, ulong length)
    {
        if (!TryGetPages(offset, length, out var first, out var last)) return;
        var words = Words;
        var lastWord = (int)(last >> 6);
        var mask = ulong.MaxValue << (int)(first & 63);
        var changed = false;
        for (var word = (int)(first >> 6); word <= lastWord; word++)
        {
            if (word == lastWord) mask &= ulong.MaxValue >> 63 - (int)(last & 63);
            ref var place = ref words[word];
            if ((Volatile.Read(ref place) & mask) != 0)
            {
                Interlocked.And(ref place, ~mask);
                changed = true;
            }

            mask = ulong.MaxValue;
        }

        if (changed) Interlocked.MemoryBarrierProcessWide();
    }

    /// <summary>Whether a block of words is all zeros.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsClean(ulong* at)
    {
        var first = Vector512.Load(at) | Vector512.Load(at + 8) | Vector512.Load(at + 16) | Vector512.Load(at + 24);
        var second = Vector512.Load(at + 32) | Vector512.Load(at + 40) | Vector512.Load(at + 48) | Vector512.Load(at + 56);
        return (first | second) == Vector512<ulong>.Zero;
    }
}
