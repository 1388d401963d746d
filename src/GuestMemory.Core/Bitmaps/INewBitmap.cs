namespace GuestMemory.Core;

/// <summary>A bitmap that can be made for memory of a length (vm-memory's NewBitmap).</summary>
/// <typeparam name="TSelf">The bitmap.</typeparam>
public interface INewBitmap<out TSelf> : IBitmap
    where TSelf : INewBitmap<TSelf>
{
    /// <summary>A bitmap in which every page is clean (vm-memory's with_len).</summary>
    /// <param name="byteSize">The bytes that are tracked.</param>
    static abstract TSelf WithLength(ulong byteSize);
}
