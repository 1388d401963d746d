namespace GuestMemory.Core;

/// <summary>
/// A dirty bitmap, in which writes are marked (vm-memory's Bitmap). Offsets are bytes from the origin of the memory that the bitmap
/// covers; bytes past its end are ignored.
/// </summary>
public interface IBitmap
{
    /// <summary>Marks every page that the bytes touch.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">The number of bytes; 0 marks nothing.</param>
    void MarkDirty(ulong offset, ulong length);

    /// <summary>Whether the page that holds this byte is dirty.</summary>
    /// <param name="offset">The byte.</param>
    bool IsDirtyAt(ulong offset);

    /// <summary>A view of the same bits with its origin at <paramref name="offset"/>.</summary>
    /// <param name="offset">In bytes; it wraps around.</param>
    BitmapSlice SliceAt(ulong offset);
}
