using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// Which pages of a region were written: one bit a page, set and taken without locks by any number of threads (vm-memory's
/// AtomicBitmap). A range is marked by whole words; a page that is dirty already costs only a read.
/// </summary>
public sealed class AtomicBitmap
{
    private readonly ulong[] _words;

    /// <param name="byteSize">The bytes that are tracked.</param>
    /// <param name="pageSize">The bytes a bit stands for; at least 1, a power of two or not.</param>
    public AtomicBitmap(ulong byteSize, ulong pageSize)
    {
        ArgumentOutOfRangeException.ThrowIfZero(pageSize);
        ByteSize = byteSize;
        PageSize = pageSize;
        PageCount = checked((long)(byteSize / pageSize + (byteSize % pageSize == 0 ? 0UL : 1UL)));
        _words = new ulong[checked((int)((PageCount + 63) / 64))];
    }

    /// <summary>The bytes that are tracked.</summary>
    public ulong ByteSize { get; }

    /// <summary>The bytes a bit stands for.</summary>
    public ulong PageSize { get; }

    /// <summary>The number of pages, the last one perhaps a part.</summary>
    public long PageCount { get; }

    /// <summary>Marks every page that the bytes touch. What lies past the end is ignored; no bytes mark nothing.</summary>
    public void MarkDirty(ulong offset, ulong length)
    {
        if (length == 0 || offset >= ByteSize) return;
        var end = length > ByteSize - offset ? ByteSize - 1 : offset + (length - 1);
        var first = (long)(offset / PageSize);
        var last = (long)(end / PageSize);
        var word = (int)(first >> 6);
        var lastWord = (int)(last >> 6);
        var mask = ulong.MaxValue << (int)(first & 63);
        while (word < lastWord)
        {
            Set(word++, mask);
            mask = ulong.MaxValue;
        }

        Set(word, mask & ulong.MaxValue >> 63 - (int)(last & 63));
    }

    /// <summary>Whether the page that holds this byte is dirty; false past the end.</summary>
    public bool IsDirtyAt(ulong offset)
    {
        if (offset >= ByteSize) return false;
        var page = (long)(offset / PageSize);
        return (Volatile.Read(ref _words[page >> 6]) >> (int)(page & 63) & 1) != 0;
    }

    /// <summary>A copy of the bits as they are.</summary>
    public ulong[] Snapshot()
    {
        var copy = new ulong[_words.Length];
        for (var i = 0; i < copy.Length; i++) copy[i] = Volatile.Read(ref _words[i]);
        return copy;
    }

    /// <summary>Takes the bits: every mark is either in the result or still in the bitmap, never lost. Atomic word by word.</summary>
    public ulong[] GetAndReset()
    {
        var taken = new ulong[_words.Length];
        for (var i = 0; i < taken.Length; i++)
        {
            if (Volatile.Read(ref _words[i]) != 0) taken[i] = Interlocked.Exchange(ref _words[i], 0);
        }

        return taken;
    }

    /// <summary>Marks every page that is set in <paramref name="words"/>: what was taken and could not be used goes back.</summary>
    public void Merge(ReadOnlySpan<ulong> words)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(words.Length, _words.Length, nameof(words));
        for (var i = 0; i < words.Length; i++) Set(i, words[i]);
    }

    /// <summary>Makes every page clean.</summary>
    public void Reset()
    {
        for (var i = 0; i < _words.Length; i++) Volatile.Write(ref _words[i], 0);
    }

    /// <summary>The number of dirty pages.</summary>
    public long CountDirty()
    {
        long count = 0;
        for (var i = 0; i < _words.Length; i++) count += BitOperations.PopCount(Volatile.Read(ref _words[i]));
        return count;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Set(int word, ulong mask)
    {
        ref var place = ref _words[word];
        if ((Volatile.Read(ref place) & mask) != mask) Interlocked.Or(ref place, mask);
    }
}
