namespace GuestMemory.Core;

/// <summary>
/// A bitmap that can also be asked and emptied: what a region's writes are marked in. Page i stands in word i / 64, bit i % 64.
/// </summary>
public interface IDirtyTracker : IBitmap
{
    /// <summary>The bytes a bit stands for.</summary>
    ulong PageSize { get; }

    /// <summary>The bytes of the first page that lie before offset 0: not 0 where a region does not begin with a page.</summary>
    ulong Lead { get; }

    /// <summary>A copy of the bits as they are.</summary>
    ulong[] Snapshot();

    /// <summary>Takes the bits: every mark is either in the result or still in the bitmap, never lost. Atomic word by word.</summary>
    ulong[] GetAndReset();

    /// <summary>Makes every page clean.</summary>
    void Reset();
}
