using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// The dirty bitmap of a region, whose tracker can be put in and replaced while others mark (vhost-user-backend's BitmapMmapRegion,
/// with its BitmapReplace). Slices share it: what is put in shows in all of them at once. Marking takes no lock and counts nothing: a
/// marker that finds the tracker replaced meanwhile marks again in the new one, and a replaced log stays mapped until no marker can
/// reach it.
/// </summary>
public sealed class BitmapMmapRegion : IBitmap
{
    private readonly Place _place;
    private readonly ulong _base;

    /// <summary>A bitmap without a tracker: marking does nothing until one is put in.</summary>
    public BitmapMmapRegion()
        : this(new Place(), 0)
    {
    }

    private BitmapMmapRegion(Place place, ulong start)
    {
        _place = place;
        _base = start;
    }

    /// <summary>What is marked in now: an <see cref="AtomicBitmap"/>, the part of a shared log, or null.</summary>
    public IDirtyTracker? Tracker => _place.Tracker;

    /// <summary>The same bitmap, seen from an offset on, in bytes; offsets of slices of slices add up, to 2^64 - 1 at the most.</summary>
    public BitmapMmapRegion SliceAt(ulong offset) => new(_place, offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset);

    /// <inheritdoc/>
    BitmapSlice IBitmap.SliceAt(ulong offset) => new(this, offset);

    /// <summary>Marks the pages of bytes, as soon as there is a tracker; an offset that passes 2^64 - 1 marks nothing.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void MarkDirty(ulong offset, ulong length)
    {
        if (offset > ulong.MaxValue - _base) return;
        offset += _base;
        var replacements = _place.Replacements;
        var tracker = _place.Tracker;
        if (tracker is AtomicBitmap bitmap) bitmap.MarkDirty(offset, length);
        else if (tracker is AtomicBitmapMmap log) log.MarkDirty(offset, length);
        else tracker?.MarkDirty(offset, length);
        Volatile.ReadBarrier();
        if (_place.Replacements != replacements) MarkAgain(offset, length);
    }

    /// <summary>Whether the page that holds this byte is marked; false without a tracker.</summary>
    public bool IsDirtyAt(ulong offset) => _place.Tracker?.IsDirtyAt(offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset) ?? false;

    /// <summary>
    /// Puts a tracker in the place of the one that was there; null ends the tracking. Every mark that has not returned by now is in the
    /// new one, and so is every later one; those that are in the former one alone can be seen there, so that who takes them now has
    /// them all. Markers never wait; a log that was there is unmapped when nobody holds it any more.
    /// </summary>
    public void Replace(IDirtyTracker? tracker) => Replace(tracker, 0);

    /// <summary>The same, and brings over what was marked in the first bytes and not taken.</summary>
    internal void Replace(IDirtyTracker? tracker, ulong keepBytes)
    {
        var former = _place.Tracker;
        _place.Tracker = tracker;
        Interlocked.Increment(ref _place.Replacements);
        // Markers pay for no barrier between their mark and their second look at the tracker. So all pass one here: who has looked
        // before and found the former one in place has its mark visible by now; who looks later finds the new one.
        Interlocked.MemoryBarrierProcessWide();
        if (former is null || tracker is null || keepBytes == 0) return;
        new DirtyBitmap(former.Lead, keepBytes, former, former.Snapshot(), "").MarkIn(tracker, former.Lead);
    }

    private void MarkAgain(ulong offset, ulong length)
    {
        int replacements;
        do
        {
            replacements = _place.Replacements;
            _place.Tracker?.MarkDirty(offset, length);
            Volatile.ReadBarrier();
        }
        while (_place.Replacements != replacements);
    }

    /// <summary>Where the tracker is; shared by all slices.</summary>
    private sealed class Place
    {
        public volatile IDirtyTracker? Tracker;

        // Counted after each. The tracker itself would not do for the second look: it can have gone, been emptied, and come back.
        public volatile int Replacements;
    }
}
