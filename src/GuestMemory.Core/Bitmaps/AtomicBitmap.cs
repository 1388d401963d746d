using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <summary>
/// Which pages of a region were written: one bit a page, set and taken without locks by any number of threads (vm-memory's
/// AtomicBitmap). A range is marked by whole words; a page that is dirty already costs only a read.
/// </summary>
/// <remarks>
/// A mark tests the bit first. The test may run before the bytes that were written are visible, and find the page still dirty, while
/// another thread takes the mark and reads the old bytes. Upstream pays for a full barrier with every mark. Here the thread that clears
/// pays: it ends with a barrier on every CPU that runs this process (membarrier). After that each writer has either published its
/// bytes, or will find its page clean and mark it.
/// </remarks>
public sealed unsafe partial class AtomicBitmap : IDirtyTracker, INewBitmap<AtomicBitmap>
{
    private const int Line = 64 / sizeof(ulong);

    // Pinned and a cache line longer than needed, so that the bits begin with a line: a vector that lies across two costs two reads.
    private ulong[] _memory;
    private int _first;

    // Into _memory, so that marking reads no other field first. Methods that use it keep this object alive.
    private ulong* _bits;

    // The offsets below it are converted to pages by a shift: all of them, or none where the page size is not a power of two.
    private ulong _shiftable;
    private readonly ulong _pageMask;
    private readonly int _shift;

    /// <summary>A bitmap of no bytes with pages of 4096, to be enlarged.</summary>
    public AtomicBitmap()
        : this(0, 4096)
    {
    }

    /// <param name="byteSize">The bytes that are tracked.</param>
    /// <param name="pageSize">The bytes a bit stands for; at least 1, a power of two or not.</param>
    public AtomicBitmap(ulong byteSize, ulong pageSize)
    {
        ArgumentOutOfRangeException.ThrowIfZero(pageSize);
        PageSize = pageSize;
        _shift = BitOperations.IsPow2(pageSize) ? BitOperations.TrailingZeroCount(pageSize) : -1;
        _pageMask = pageSize - 1;
        _memory = [];
        Resize(byteSize);
    }

    private AtomicBitmap(AtomicBitmap other)
        : this(other.ByteSize, other.PageSize) => other.Snapshot(Words);

    /// <summary>A bitmap with the host's page size (vm-memory's with_len).</summary>
    /// <param name="byteSize">The bytes that are tracked.</param>
    public static AtomicBitmap WithLength(ulong byteSize) => new(byteSize, HostPage.Size);

    /// <summary>The bytes that are tracked.</summary>
    public ulong ByteSize { get; private set; }

    /// <summary>The bytes a bit stands for.</summary>
    public ulong PageSize { get; }

    /// <inheritdoc/>
    ulong IDirtyTracker.OffsetInFirstPage => 0;

    /// <summary>The number of pages, the last one perhaps a part.</summary>
    public long PageCount { get; private set; }

    /// <summary>The number of 64-bit words that hold the bits: page i stands in word i / 64, bit i % 64.</summary>
    public int WordCount { get; private set; }

    /// <summary>The pages and how many are dirty, for debuggers: "AtomicBitmap of 256 pages of 0x1000 bytes, 3 dirty".</summary>
    public override string ToString() => $"{nameof(AtomicBitmap)} of {PageCount} pages of 0x{PageSize:x} bytes, {BitScan.Count(Snapshot())} dirty";

    /// <summary>Adds clean pages at the end; the other bits stay. No other thread may use the bitmap meanwhile.</summary>
    /// <param name="extra">The number of bytes to add.</param>
    /// <exception cref="OverflowException">More than 2^64 - 1 bytes, or more bits than an array of words holds; nothing has changed.</exception>
    public void Enlarge(ulong extra) => Resize(checked(ByteSize + extra));

    /// <summary>Marks every page that the bytes touch. Bytes past the end are ignored; a length of 0 marks nothing.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">The number of bytes; cut at the end of the bitmap.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void MarkDirty(ulong offset, ulong length)
    {
        // Nearly every write lies inside one page. The right side is the number of bytes after the offset in its page; a length of 0 wraps and is larger.
        if (offset < _shiftable && unchecked(length - 1) <= (~offset & _pageMask)) Set(offset >> _shift);
        else MarkRange(offset, length);
    }

    /// <summary>Whether the page that holds this byte is dirty; false past the end (vm-memory's dirty_at and is_addr_set).</summary>
    /// <param name="offset">The byte.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsDirtyAt(ulong offset)
    {
        if (offset < _shiftable) return IsSet(offset >> _shift);
        return offset < ByteSize && IsSet(PageOf(offset));
    }

    /// <inheritdoc/>
    public BitmapSlice SliceAt(ulong offset) => new(this, offset);

    /// <summary>Whether a page is dirty; false past the end.</summary>
    /// <param name="page">The number of the page.</param>
    public bool IsBitSet(long page) => (ulong)page < (ulong)PageCount && IsSet((ulong)page);

    /// <summary>Marks a page; one past the end is ignored.</summary>
    /// <param name="page">The number of the page.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void SetBit(long page)
    {
        if ((ulong)page < (ulong)PageCount) Set((ulong)page);
    }

    /// <summary>Marks every page that is set in <paramref name="words"/>: puts back marks that were taken and could not be used.</summary>
    /// <param name="words">As many as <see cref="WordCount"/>.</param>
    public void Merge(ReadOnlySpan<ulong> words)
    {
        var mine = Words;
        ArgumentOutOfRangeException.ThrowIfNotEqual(words.Length, mine.Length, nameof(words));
        for (var i = 0; i < words.Length; i++) Set(ref mine[i], words[i]);
    }

    /// <summary>A separate bitmap with the same bits.</summary>
    public AtomicBitmap Clone() => new(this);

    private void MarkRange(ulong offset, ulong length)
    {
        if (!TryGetPages(offset, length, out var first, out var last)) return;
        var words = Words;
        var lastWord = (int)(last >> 6);
        var mask = ulong.MaxValue << (int)(first & 63);
        for (var word = (int)(first >> 6); word <= lastWord; word++)
        {
            if (word == lastWord) mask &= ulong.MaxValue >> 63 - (int)(last & 63);
            ref var place = ref words[word];
            if (mask != ulong.MaxValue) Set(ref place, mask);
            // All ones do not depend on the old word: a store is enough.
            else if (Volatile.Read(ref place) != ulong.MaxValue) Volatile.Write(ref place, ulong.MaxValue);
            mask = ulong.MaxValue;
        }
    }

    private bool TryGetPages(ulong offset, ulong length, out ulong first, out ulong last)
    {
        first = last = 0;
        if (length == 0 || offset >= ByteSize) return false;
        first = PageOf(offset);
        last = PageOf(length > ByteSize - offset ? ByteSize - 1 : offset + (length - 1));
        return true;
    }

    private Span<ulong> Words => _memory.AsSpan(_first, WordCount);

    private ulong PageOf(ulong offset) => _shift >= 0 ? offset >> _shift : offset / PageSize;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool IsSet(ulong page)
    {
        var set = (Volatile.Read(ref _bits[page >> 6]) >> (int)(page & 63) & 1) != 0;
        GC.KeepAlive(this);
        return set;
    }

    // Every caller has checked that the page lies in the bitmap.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Set(ulong page)
    {
        var bit = 1UL << (int)(page & 63);
        ref var word = ref _bits[page >> 6];
        if ((Volatile.Read(ref word) & bit) == 0) Interlocked.Or(ref word, bit);
        GC.KeepAlive(this);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Set(ref ulong place, ulong mask)
    {
        if ((Volatile.Read(ref place) & mask) != mask) Interlocked.Or(ref place, mask);
    }

    private void Resize(ulong byteSize)
    {
        var pages = checked((long)(byteSize / PageSize + (byteSize % PageSize == 0 ? 0UL : 1UL)));
        var words = checked((int)((pages + 63) / 64));
        var memory = GC.AllocateArray<ulong>(checked(words + Line - 1), pinned: true);
        var first = (ulong*)Unsafe.AsPointer(ref MemoryMarshal.GetArrayDataReference(memory));
        var skip = (int)(-(nint)first / sizeof(ulong)) & (Line - 1);
        Words.CopyTo(memory.AsSpan(skip));
        _memory = memory;
        _first = skip;
        _bits = first + skip;
        WordCount = words;
        ByteSize = byteSize;
        PageCount = pages;
        _shiftable = _shift >= 0 ? byteSize : 0;
    }
}
