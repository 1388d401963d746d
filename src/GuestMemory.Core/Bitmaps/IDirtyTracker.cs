namespace GuestMemory.Core;

/// <summary>
/// A bitmap that the writes to a region are marked in, and that is also read and reset. Page i is bit i % 64 of word i / 64.
/// </summary>
public interface IDirtyTracker : IBitmap
{
    /// <summary>The bytes a bit stands for.</summary>
    ulong PageSize { get; }

    /// <summary>Where offset 0 lies in the first page, in bytes: 0 unless the region begins inside a page of the tracker.</summary>
    ulong OffsetInFirstPage { get; }

    /// <summary>A copy of the bits as they are.</summary>
    ulong[] Snapshot();

    /// <summary>Takes the bits: every mark is either in the result or still in the bitmap, never lost. Atomic word by word.</summary>
    ulong[] GetAndReset();

    /// <summary>Makes every page clean.</summary>
    void Reset();
}
