namespace GuestMemory.Core;

/// <summary>
/// What a write tells about itself: which bytes are dirty now (vm-memory's Bitmap). Offsets are bytes from the origin of the memory
/// that the bitmap covers; what lies past its end is ignored.
/// </summary>
public interface IBitmap
{
    /// <summary>Marks every page that the bytes touch.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">How many bytes; 0 marks nothing.</param>
    void MarkDirty(ulong offset, ulong length);

    /// <summary>Whether the page that holds this byte is dirty.</summary>
    /// <param name="offset">The byte.</param>
    bool IsDirtyAt(ulong offset);

    /// <summary>A view of the same bits whose origin lies <paramref name="offset"/> bytes further on.</summary>
    /// <param name="offset">In bytes; it wraps around.</param>
    BitmapSlice SliceAt(ulong offset);
}
