using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// The part of a shared dirty log that belongs to one region (vhost-user-backend's AtomicBitmapMmap). Any number of threads may mark
/// and take; usually the front end, in another process, takes. A region that marks in it keeps the log from being
/// released; marks that are made after its release are lost.
/// </summary>
public sealed unsafe class AtomicBitmapMmap : IDirtyTracker
{
    private readonly MmapLogReg _log;
    private readonly ulong _firstPage;
    private readonly ulong _pageCount;
    private readonly ulong _shift;

    // Where offset 0 lies in the log: the page and the byte in it.
    private readonly ulong _origin;

    // The length in bytes of the part of the region that is tracked.
    private readonly ulong _reach;

    // The addresses stay reserved as long as this object is reachable, since the log is one of its fields: marking needs no reference.
    private readonly ulong* _words;

    /// <param name="startAddress">The region's guest physical address.</param>
    /// <param name="length">The region's length in bytes; 1 or more.</param>
    /// <param name="log">The log; it must reach to the region's last page.</param>
    /// <param name="strict">
    /// Counts pages as upstream does: whole pages from the region's start. Where the region is not aligned to 4096 bytes, that marks the
    /// wrong pages, and never the last part of a page. Otherwise a byte belongs to the page of the guest that contains it.
    /// </param>
    /// <exception cref="GuestMemoryException">InvalidLog: the region is empty, passes 2^64 - 1, or lies past the end of the log; or the log cannot be written. LogDisposed.</exception>
    public AtomicBitmapMmap(GuestAddress startAddress, ulong length, MmapLogReg log, bool strict = false)
    {
        ArgumentNullException.ThrowIfNull(log);
        if (length == 0) throw Invalid("A region without bytes has nothing to log.");
        var last = startAddress.CheckedAdd(length - 1) ?? throw Invalid($"A region of 0x{length:x} bytes at {startAddress} passes the last address, 2^64 - 1.");
        if (MmapLogReg.RequiredLength(last) > log.Length)
            throw Invalid($"The log of {log.Length} bytes ends before the region's last address, {last}: {MmapLogReg.RequiredLength(last)} bytes are needed.");
        _log = log;
        _firstPage = startAddress.Value / MmapLogReg.PageSize;
        _shift = strict ? 0 : startAddress.Value % MmapLogReg.PageSize;
        _origin = _firstPage * MmapLogReg.PageSize + _shift;
        _pageCount = strict ? length / MmapLogReg.PageSize : (last.Value / MmapLogReg.PageSize) - _firstPage + 1;
        _reach = _pageCount == 0 ? 0 : _pageCount * MmapLogReg.PageSize - _shift;
        log.AddReference();
        try
        {
            _words = log.Words;
            log.Populate(_firstPage / 8, last.Value / MmapLogReg.PageSize / 8);
        }
        finally
        {
            log.ReleaseReference();
        }
    }

    /// <summary>The log that it is a part of.</summary>
    public MmapLogReg Log => _log;

    /// <summary>The part of the log, for debuggers: "16 pages from 0x80000000 in the log /proc/1/fd/5, 0x40000 bytes".</summary>
    public override string ToString() => $"{_pageCount} pages from 0x{_firstPage * MmapLogReg.PageSize:x} in the {_log}";

    /// <inheritdoc/>
    public ulong PageSize => MmapLogReg.PageSize;

    /// <inheritdoc/>
    public ulong OffsetInFirstPage => _shift;

    /// <summary>Marks the pages of bytes of the region; what lies past its end is ignored. <paramref name="offset"/> is relative to the region.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void MarkDirty(ulong offset, ulong length)
    {
        // Nearly every write lies inside one page that is tracked.
        var at = unchecked(_origin + offset);
        if (offset < _reach && unchecked(length - 1) <= (~at & (MmapLogReg.PageSize - 1)))
        {
            var page = at / MmapLogReg.PageSize;
            Interlocked.Or(ref _words[page >> 6], 1UL << (int)(page & 63));
            GC.KeepAlive(this);
        }
        else
        {
            MarkRange(offset, length);
        }
    }

    /// <summary>Whether the page that holds this byte of the region is marked; false past the end.</summary>
    public bool IsDirtyAt(ulong offset)
    {
        var page = Saturate(offset, _shift) / MmapLogReg.PageSize;
        if (page >= _pageCount) return false;
        page += _firstPage;
        var dirty = (Volatile.Read(ref *(_words + (page >> 6))) >> (int)(page & 63) & 1) != 0;
        GC.KeepAlive(this);
        return dirty;
    }

    /// <inheritdoc/>
    public BitmapSlice SliceAt(ulong offset) => new(this, offset);

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">LogDisposed.</exception>
    public ulong[] Snapshot() => Read(take: false);

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">LogDisposed.</exception>
    public ulong[] GetAndReset() => Read(take: true);

    /// <inheritdoc/>
    public void Reset()
    {
        if (!_log.TryAddReference()) return;
        try
        {
            ReadWords(take: true);
        }
        finally
        {
            _log.ReleaseReference();
        }
    }

    private ulong[] Read(bool take)
    {
        _log.AddReference();
        try
        {
            return ReadWords(take);
        }
        finally
        {
            _log.ReleaseReference();
        }
    }

    /// <summary>The region's bits, moved to where its first page is bit 0; other regions' bits in the same words stay as they are.</summary>
    private ulong[] ReadWords(bool take)
    {
        var words = new ulong[(_pageCount + 63) / 64];
        for (ulong page = 0; page < _pageCount;)
        {
            var count = Math.Min(64 - (_firstPage + page & 63), _pageCount - page);
            var at = (int)(_firstPage + page & 63);
            var mask = ulong.MaxValue >> (int)(64 - count) << at;
            ref var word = ref _words[_firstPage + page >> 6];
            var bits = Volatile.Read(ref word) & mask;
            if (take && bits != 0) bits = Interlocked.And(ref word, ~mask) & mask;
            bits >>= at;
            words[page >> 6] |= bits << (int)(page & 63);
            if ((page & 63) + count > 64) words[(page >> 6) + 1] |= bits >> 64 - (int)(page & 63);
            page += count;
        }

        return words;
    }

    private void MarkRange(ulong offset, ulong length)
    {
        if (length == 0) return;
        var first = Saturate(offset, _shift) / MmapLogReg.PageSize;
        if (first >= _pageCount) return;
        var last = Math.Min(Saturate(Saturate(offset, length - 1), _shift) / MmapLogReg.PageSize, _pageCount - 1);
        first += _firstPage;
        last += _firstPage;
        var word = _words + (first >> 6);
        var lastWord = _words + (last >> 6);
        var mask = ulong.MaxValue << (int)(first & 63);
        while (word < lastWord)
        {
            Interlocked.Or(ref *word++, mask);
            mask = ulong.MaxValue;
        }

        // Without a test first: the front end clears in another process, and only this barrier keeps it from taking a mark before the
        // bytes that were written are visible to it.
        Interlocked.Or(ref *word, mask & ulong.MaxValue >> 63 - (int)(last & 63));
        GC.KeepAlive(this);
    }

    private static ulong Saturate(ulong left, ulong right) => left > ulong.MaxValue - right ? ulong.MaxValue : left + right;

    private static GuestMemoryException Invalid(string message) => new(GuestMemoryError.InvalidLog, message);
}
