namespace GuestMemory.Core;

/// <summary>
/// What memory marks in while a front end has its writes logged: the front end's log, and the memory's own tracker where it has one. Marks are
/// read and taken of the own one. Those of the log are the front end's, which would miss what another takes.
/// </summary>
internal sealed class LoggedTracker : IDirtyTracker
{
    private LoggedTracker(IDirtyTracker? own, AtomicBitmapMmap log) => (Own, Log) = (own, log);

    public IDirtyTracker? Own { get; }

    public AtomicBitmapMmap Log { get; }

    public ulong PageSize => (Own ?? Log).PageSize;

    public ulong OffsetInFirstPage => (Own ?? Log).OffsetInFirstPage;

    /// <summary>Marks in both; the same tracker where there is no log.</summary>
    public static IDirtyTracker? Of(IDirtyTracker? own, AtomicBitmapMmap? log) => log is null ? own : new LoggedTracker(own, log);

    /// <summary>The memory's own tracker; null without one.</summary>
    public static IDirtyTracker? OwnOf(IDirtyTracker? tracker) => tracker is LoggedTracker logged ? logged.Own : tracker;

    public void MarkDirty(ulong offset, ulong length)
    {
        if (Own is AtomicBitmap bitmap) bitmap.MarkDirty(offset, length);
        else Own?.MarkDirty(offset, length);
        Log.MarkDirty(offset, length);
    }

    public bool IsDirtyAt(ulong offset) => (Own ?? Log).IsDirtyAt(offset);

    public BitmapSlice SliceAt(ulong offset) => new(this, offset);

    public ulong[] Snapshot() => (Own ?? Log).Snapshot();

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">LogOfFrontEnd.</exception>
    public ulong[] GetAndReset() => RequireOwn().GetAndReset();

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">LogOfFrontEnd.</exception>
    public void Reset() => RequireOwn().Reset();

    public override string ToString() => $"{Own?.ToString() ?? "no tracker"}, and {Log}";

    /// <exception cref="GuestMemoryException">LogOfFrontEnd: there is only the log.</exception>
    public IDirtyTracker RequireOwn() => Own ?? throw new GuestMemoryException(GuestMemoryError.LogOfFrontEnd,
        "The writes are marked in the dirty log of the front end alone, whose migration would miss the marks that another takes. Give the memory a bitmap of its own.");
}
