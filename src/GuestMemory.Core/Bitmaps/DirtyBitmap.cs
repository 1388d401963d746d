namespace GuestMemory.Core;

/// <summary>
/// The dirty pages of a range of guest memory at one moment: the result of a query, whatever tracks the writes. Page i is bit i % 64 of
/// word i / 64.
/// </summary>
public sealed partial class DirtyBitmap
{
    private readonly ulong[] _words;

    // Where the memory that the bitmap covers begins in page 0.
    private readonly ulong _offsetInFirstPage;

    /// <param name="startAddress">The guest address of page 0.</param>
    /// <param name="byteSize">The bytes covered; the last page may be incomplete.</param>
    /// <param name="pageSize">The page size in bytes.</param>
    /// <param name="words">The bits; the array is used, not copied. Bits past the last page must be 0.</param>
    /// <param name="source">What tracked the writes, as text: "region mem0".</param>
    /// <exception cref="ArgumentException">The words are not as many as the pages need, or have bits past the last page.</exception>
    public DirtyBitmap(ulong startAddress, ulong byteSize, ulong pageSize, ulong[] words, string source)
    {
        ArgumentNullException.ThrowIfNull(words);
        StartAddress = startAddress;
        ByteSize = byteSize;
        PageSize = pageSize;
        PageCount = (long)(byteSize / pageSize + (byteSize % pageSize == 0 ? 0UL : 1UL));
        ArgumentOutOfRangeException.ThrowIfNotEqual(words.Length, (PageCount + 63) / 64, nameof(words));
        if (PageCount % 64 != 0 && words[^1] >> (int)(PageCount % 64) != 0) throw new ArgumentException("Bits past the last page are set.", nameof(words));
        _words = words;
        Source = source;
        DirtyCount = BitScan.Count(words);
    }

    /// <summary>The bits of a region's tracker.</summary>
    /// <param name="address">The region's guest address.</param>
    /// <param name="size">The region's length in bytes.</param>
    /// <param name="tracker">The tracker.</param>
    /// <param name="words">The bits.</param>
    /// <param name="source">What tracked the writes, as text.</param>
    internal DirtyBitmap(ulong address, ulong size, IDirtyTracker tracker, ulong[] words, string source)
        : this(address, size, tracker.OffsetInFirstPage, tracker.PageSize, words, source)
    {
    }

    private DirtyBitmap(ulong address, ulong size, ulong offsetInFirstPage, ulong pageSize, ulong[] words, string source)
        : this(unchecked(address - offsetInFirstPage), size + offsetInFirstPage, pageSize, Cut(words, size + offsetInFirstPage, pageSize), source) => _offsetInFirstPage = offsetInFirstPage;

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

    /// <summary>The part of the pages that is dirty, from 0 to 1.</summary>
    public double Density => PageCount == 0 ? 0 : (double)DirtyCount / PageCount;

    /// <summary>What is dirty, for debuggers and messages: "region ram: 3 of 256 pages of 0x1000 bytes from 0x80000000 are dirty".</summary>
    public override string ToString() => $"{Source}: {DirtyCount} of {PageCount} pages of 0x{PageSize:x} bytes from 0x{StartAddress:x} are dirty";

    /// <summary>What tracked the writes: "region mem0", for example.</summary>
    public string Source { get; }

    /// <summary>The bits.</summary>
    public ReadOnlySpan<ulong> AsWords() => _words;

    /// <summary>Whether page <paramref name="page"/> is dirty; false past the end.</summary>
    public bool IsDirty(long page) =>
        page >= 0 && page < PageCount && (_words[page >> 6] >> (int)(page & 63) & 1) != 0;

    /// <summary>The dirty pages in ascending order. Where the buffer is full there may be more: continue at the last page + 1.</summary>
    /// <param name="pages">Receives the numbers of the pages; the rest of the buffer is undefined.</param>
    /// <param name="from">The first page to look at.</param>
    /// <returns>The number of entries written.</returns>
    public int ListPages(Span<long> pages, long from = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(from);
        return BitScan.ListPages(_words, from, pages);
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
        return BitScan.ListRuns(_words, from, runs);
    }

    /// <summary>Marks every dirty page in another bitmap, whose offset 0 is the address <paramref name="origin"/>.</summary>
    internal void MarkIn(IBitmap bitmap, ulong origin)
    {
        foreach (var range in GetRanges()) bitmap.MarkDirty(range.Address - origin, range.Size);
    }

    private static ulong[] Cut(ulong[] words, ulong size, ulong pageSize)
    {
        var pages = size / pageSize + (size % pageSize == 0 ? 0UL : 1UL);
        // A caller's tracker may cover more or less than the region.
        Array.Resize(ref words, (int)((pages + 63) / 64));
        if ((pages & 63) != 0) words[^1] &= ulong.MaxValue >> 64 - (int)(pages & 63);
        return words;
    }

    /// <summary>The runs of dirty pages as ranges of addresses, in ascending order, cut at the ends of the memory.</summary>
    public IEnumerable<AddressRange> GetRanges()
    {
        var runs = new PageRun[256];
        long from = 0;
        int count;
        do
        {
            count = ListRuns(runs, from);
            for (var i = 0; i < count; i++)
            {
                var offset = (ulong)runs[i].First * PageSize;
                from = runs[i].End;
                // The end of an incomplete page may lie past 2^64.
                var bytes = from == PageCount ? ByteSize - offset : (ulong)runs[i].Count * PageSize;
                var before = runs[i].First == 0 ? _offsetInFirstPage : 0;
                yield return new AddressRange(StartAddress + offset + before, bytes - before, runs[i].Count);
            }
        }
        while (count == runs.Length);
    }
}
