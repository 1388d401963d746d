using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// A view of a bitmap with a shifted origin, as a slice of memory has it (vm-memory's RefSlice and ArcSlice). The default value
/// tracks nothing: it ignores marks, and no page is dirty (vm-memory's unit bitmap, and its absent optional one).
/// </summary>
/// <param name="Bitmap">The bitmap, or null: no tracking.</param>
/// <param name="BaseOffset">Where the view begins, in bytes; added to every offset, wrapping around as upstream does.</param>
public readonly record struct BitmapSlice(IBitmap? Bitmap, ulong BaseOffset = 0) : IBitmap
{
    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void MarkDirty(ulong offset, ulong length)
    {
        if (Bitmap is not null) Mark(Bitmap, unchecked(BaseOffset + offset), length);
    }

    /// <summary>Marks in a bitmap of any kind.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void Mark(IBitmap bitmap, ulong offset, ulong length)
    {
        // A type test for a sealed class is one comparison; a call through the interface costs several times as much as the mark.
        if (bitmap is AtomicBitmap atomic) atomic.MarkDirty(offset, length);
        else if (bitmap is BitmapMmapRegion region) region.MarkDirty(offset, length);
        else bitmap.MarkDirty(offset, length);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsDirtyAt(ulong offset) => Bitmap is AtomicBitmap atomic
        ? atomic.IsDirtyAt(unchecked(BaseOffset + offset))
        : Bitmap is not null && Bitmap.IsDirtyAt(unchecked(BaseOffset + offset));

    /// <summary>A view of this view: the offsets add up.</summary>
    /// <param name="offset">In bytes; it wraps around.</param>
    public BitmapSlice SliceAt(ulong offset) => this with { BaseOffset = unchecked(BaseOffset + offset) };
}
