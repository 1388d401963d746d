namespace GuestMemory.Core;

/// <summary>
/// The dirty bitmap of a region whose log can be put in and replaced while others mark (vhost-user-backend's BitmapMmapRegion, with
/// its BitmapReplace). Slices share the log: what is put in shows in all of them at once. Marking takes no lock and counts nothing: a
/// marker that finds the log replaced meanwhile marks again in the new one, and a replaced log stays mapped until no marker can reach
/// it.
/// </summary>
public sealed class BitmapMmapRegion
{
    private readonly Place _place;
    private readonly ulong _base;

    /// <summary>A bitmap without a log: marking does nothing until one is put in.</summary>
    public BitmapMmapRegion()
        : this(new Place(), 0)
    {
    }

    private BitmapMmapRegion(Place place, ulong start)
    {
        _place = place;
        _base = start;
    }

    /// <summary>The same bitmap, seen from an offset on, in bytes; offsets of slices of slices add up, to 2^64 - 1 at the most.</summary>
    public BitmapMmapRegion SliceAt(ulong offset) => new(_place, offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset);

    /// <summary>Marks the pages of bytes, as soon as there is a log; an offset that passes 2^64 - 1 marks nothing.</summary>
    public void MarkDirty(ulong offset, ulong length)
    {
        if (offset > ulong.MaxValue - _base) return;
        var log = _place.Log;
        while (log is not null)
        {
            log.MarkDirty(_base + offset, length);
            var now = _place.Log;
            if (ReferenceEquals(now, log)) return;
            log = now;
        }
    }

    /// <summary>Whether the page that holds this byte is marked; false without a log.</summary>
    public bool IsDirtyAt(ulong offset) => _place.Log?.IsDirtyAt(offset > ulong.MaxValue - _base ? ulong.MaxValue : _base + offset) ?? false;

    /// <summary>
    /// Puts a log in the place of the one that was there. Every mark that has not returned by now is in the new log, and so is every
    /// later one. Markers never wait; the old log is unmapped when nobody holds it any more.
    /// </summary>
    public void Replace(AtomicBitmapMmap log)
    {
        ArgumentNullException.ThrowIfNull(log);
        _place.Log = log;
    }

    /// <summary>Where the log is; shared by all slices.</summary>
    private sealed class Place
    {
        public volatile AtomicBitmapMmap? Log;
    }
}
