using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// Which pages of a stretch of guest memory are dirty, as they were when asked: what every dirty-tracking source answers with.
/// Page i stands in word i / 64, bit i % 64.
/// </summary>
public sealed class DirtyBitmap
{
    private readonly ulong[] _words;

    /// <param name="startAddress">The guest address of page 0.</param>
    /// <param name="byteSize">The bytes covered; the last page may be a part.</param>
    /// <param name="pageSize">The bytes a page has.</param>
    /// <param name="words">The bits; kept, not copied. Bits past the last page must be 0.</param>
    /// <param name="source">Where the bits come from, for people: "region mem0".</param>
    public DirtyBitmap(ulong startAddress, ulong byteSize, ulong pageSize, ulong[] words, string source)
    {
        ArgumentNullException.ThrowIfNull(words);
        StartAddress = startAddress;
        ByteSize = byteSize;
        PageSize = pageSize;
        PageCount = (long)(byteSize / pageSize + (byteSize % pageSize == 0 ? 0UL : 1UL));
        ArgumentOutOfRangeException.ThrowIfNotEqual(words.Length, (int)((PageCount + 63) / 64), nameof(words));
        _words = words;
        Source = source;
        foreach (var word in words) DirtyCount += BitOperations.PopCount(word);
    }

    /// <summary>The guest address of the first page.</summary>
    public ulong StartAddress { get; }

    /// <summary>The bytes covered.</summary>
    public ulong ByteSize { get; }

    /// <summary>The bytes a bit stands for.</summary>
    public ulong PageSize { get; }

    /// <summary>The number of pages.</summary>
    public long PageCount { get; }

    /// <summary>The number of dirty pages.</summary>
    public long DirtyCount { get; }

    /// <summary>Where the bits come from.</summary>
    public string Source { get; }

    /// <summary>The bits.</summary>
    public ReadOnlySpan<ulong> AsWords() => _words;

    /// <summary>Whether page <paramref name="page"/> is dirty; false past the end.</summary>
    public bool IsDirty(long page) =>
        page >= 0 && page < PageCount && (_words[page >> 6] >> (int)(page & 63) & 1) != 0;

    /// <summary>The runs of dirty pages, in ascending order; the last one ends with the memory.</summary>
    public IEnumerable<AddressRange> GetRanges()
    {
        for (var first = Next(0, dirty: true); first < PageCount;)
        {
            var end = Next(first, dirty: false);
            var offset = (ulong)first * PageSize;
            var bytes = Math.Min((ulong)end * PageSize, ByteSize) - offset;
            yield return new AddressRange(StartAddress + offset, bytes, end - first);
            first = Next(end, dirty: true);
        }
    }

    /// <summary>The first page from <paramref name="page"/> on that is dirty (or clean), or <see cref="PageCount"/>.</summary>
    private long Next(long page, bool dirty)
    {
        var flip = dirty ? 0 : ulong.MaxValue;
        for (var word = page >> 6; word < _words.Length; word++)
        {
            var bits = _words[word] ^ flip;
            if (word == page >> 6) bits &= ulong.MaxValue << (int)(page & 63);
            if (bits != 0) return Math.Min(PageCount, (word << 6) + BitOperations.TrailingZeroCount(bits));
        }

        return PageCount;
    }
}
