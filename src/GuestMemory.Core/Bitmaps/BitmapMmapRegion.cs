using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// The dirty bitmap of a region, whose tracker is installed and replaced while other threads mark (vhost-user-backend's
/// BitmapMmapRegion). Slices and clones share the tracker: a new one shows in all of them at once. Marking takes no lock and counts
/// nothing: a thread that finds the tracker replaced after its mark marks again in the new one.
/// </summary>
public sealed class BitmapMmapRegion : IBitmapReplace<IDirtyTracker>, INewBitmap<BitmapMmapRegion>
{
    // Null in the bitmap that slices and clones are made of. That one holds the tracker itself, which saves a memory's marks an indirection.
    private readonly BitmapMmapRegion? _original;
    private readonly ulong _base;

    // Of a slice or a clone: null and 0.
    private volatile IDirtyTracker? _tracker;

    // Increased after each replacement. Comparing trackers would not do: one can be replaced, emptied, and installed again.
    private volatile int _replacements;

    /// <summary>A bitmap without a tracker: marking does nothing until one is installed.</summary>
    public BitmapMmapRegion()
    {
    }

    private BitmapMmapRegion(BitmapMmapRegion original, ulong start)
    {
        _original = original;
        _base = start;
    }

    /// <summary>
    /// The tracker that is installed: an <see cref="AtomicBitmap"/>, the part of a shared log, or null. The log of a front end that writes
    /// are marked in besides is not meant.
    /// </summary>
    public IDirtyTracker? Tracker => LoggedTracker.OwnOf(Installed);

    /// <summary>What marks go to: <see cref="Tracker"/>, or that and the log of a front end.</summary>
    internal IDirtyTracker? Installed => Original._tracker;

    private BitmapMmapRegion Original => _original ?? this;

    /// <summary>The tracker that is installed, for debuggers.</summary>
    public override string ToString() => Installed?.ToString() ?? "no tracker";

    /// <summary>A bitmap without a tracker (vhost-user-backend's with_len).</summary>
    /// <param name="byteSize">Ignored, as upstream: the tracker has a size.</param>
    public static BitmapMmapRegion WithLength(ulong byteSize) => new();

    /// <summary>The same bitmap again: it shares the tracker, also later ones, and begins at the same byte.</summary>
    public BitmapMmapRegion Clone() => new(Original, _base);

    /// <summary>The same bitmap, seen from an offset on, in bytes; offsets of slices of slices add up, to 2^64 - 1 at the most.</summary>
    public BitmapMmapRegion SliceAt(ulong offset) => new(Original, offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset);

    /// <inheritdoc/>
    BitmapSlice IBitmap.SliceAt(ulong offset) => new(this, offset);

    /// <summary>Marks the pages of bytes, where a tracker is installed; an offset that passes 2^64 - 1 marks nothing.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void MarkDirty(ulong offset, ulong length)
    {
        var replacements = _replacements;
        var tracker = _tracker;
        if (tracker is AtomicBitmap bitmap) bitmap.MarkDirty(offset, length);
        else if (tracker is AtomicBitmapMmap log) log.MarkDirty(offset, length);
        else MarkOtherwise(tracker, offset, length);
        Volatile.ReadBarrier();
        if (_replacements != replacements) MarkAgain(offset, length);
    }

    /// <summary>Whether the page that holds this byte is marked; false without a tracker.</summary>
    public bool IsDirtyAt(ulong offset) => Installed?.IsDirtyAt(offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset) ?? false;

    /// <summary>
    /// Installs a tracker in place of the former one; null ends the tracking. Every mark whose call has not returned yet is in the new
    /// tracker when this returns, and so is every later mark. The marks that are in the former tracker alone are visible there when this
    /// returns: a caller that takes them then has all of them. Marking never waits. The log of a tracker is kept from being released
    /// while the tracker is installed.
    /// </summary>
    /// <exception cref="GuestMemoryException">LogDisposed: the new tracker's log was released; the former tracker stays.</exception>
    public void Replace(IDirtyTracker? bitmap) => Replace(bitmap, 0);

    /// <summary>The same, and copies the marks of the first <paramref name="keepBytes"/> bytes that were not taken to the new tracker.</summary>
    internal void Replace(IDirtyTracker? tracker, ulong keepBytes)
    {
        if (_original is not null)
        {
            _original.Replace(tracker, keepBytes);
            return;
        }

        AddReferences(tracker);
        var former = Interlocked.Exchange(ref _tracker, tracker);
        Interlocked.Increment(ref _replacements);
        // A marking thread issues no barrier between its mark and its second look at the tracker; the process-wide barrier takes its
        // place. A thread that looked before it and found the former tracker has made its mark visible; one that looks later finds the
        // new tracker, and marks again.
        Interlocked.MemoryBarrierProcessWide();
        try
        {
            if (LoggedTracker.OwnOf(former) is not { } from || LoggedTracker.OwnOf(tracker) is not { } to || keepBytes == 0) return;
            new DirtyBitmap(from.OffsetInFirstPage, keepBytes, from, from.Snapshot(), "").MarkIn(to, from.OffsetInFirstPage);
        }
        finally
        {
            var (own, frontEnd) = LogsOf(former);
            own?.ReleaseReference();
            frontEnd?.ReleaseReference();
        }
    }

    /// <summary>Reads the marks of the tracker that is installed, or takes them; null where there is none.</summary>
    /// <exception cref="GuestMemoryException">LogOfFrontEnd: they are to be taken, and only a front end may.</exception>
    internal (IDirtyTracker Tracker, ulong[] Words)? Read(bool take)
    {
        while (Installed is { } tracker)
        {
            try
            {
                return (tracker, take ? tracker.GetAndReset() : tracker.Snapshot());
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.LogDisposed && Installed != tracker)
            {
                // It was replaced, and its log released, before it could be read.
            }
        }

        return null;
    }

    /// <exception cref="GuestMemoryException">LogDisposed; no log is kept then.</exception>
    private static void AddReferences(IDirtyTracker? tracker)
    {
        var (own, frontEnd) = LogsOf(tracker);
        own?.AddReference();
        try
        {
            frontEnd?.AddReference();
        }
        catch
        {
            own?.ReleaseReference();
            throw;
        }
    }

    /// <summary>The logs that a tracker marks in: its own one, and that of a front end.</summary>
    private static (MmapLogReg? Own, MmapLogReg? FrontEnd) LogsOf(IDirtyTracker? tracker) =>
        ((LoggedTracker.OwnOf(tracker) as AtomicBitmapMmap)?.Log, (tracker as LoggedTracker)?.Log.Log);

    /// <summary>Marks in a tracker of another kind, or, for a slice or a clone, in the bitmap that it was made of.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void MarkOtherwise(IDirtyTracker? tracker, ulong offset, ulong length)
    {
        if (tracker is LoggedTracker logged) logged.MarkDirty(offset, length);
        else tracker?.MarkDirty(offset, length);
        if (_original is not null && offset <= ulong.MaxValue - _base) _original.MarkDirty(_base + offset, length);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void MarkAgain(ulong offset, ulong length)
    {
        int replacements;
        do
        {
            replacements = _replacements;
            _tracker?.MarkDirty(offset, length);
            Volatile.ReadBarrier();
        }
        while (_replacements != replacements);
    }
}
