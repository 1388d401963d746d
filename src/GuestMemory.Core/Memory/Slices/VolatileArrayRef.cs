using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>Values one behind the other in guest memory (vm-memory's VolatileArrayRef).</summary>
/// <typeparam name="T">Plain data.</typeparam>
public readonly unsafe struct VolatileArrayRef<T>
    where T : unmanaged
{
    private readonly VolatileSlice _slice;

    internal VolatileArrayRef(VolatileSlice slice) => _slice = slice;

    /// <summary>The number of values (vm-memory's len).</summary>
    public ulong Count => _slice.Size / (ulong)sizeof(T);

    /// <summary>The size of a value in bytes.</summary>
    public int ElementSize => sizeof(T);

    /// <summary>Whether there are none.</summary>
    public bool IsEmpty => _slice.IsEmpty;

    /// <summary>Where writes are marked.</summary>
    public BitmapSlice Bitmap => _slice.Bitmap;

    /// <summary>One of the values.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There are not so many.</exception>
    public VolatileRef<T> RefAt(ulong index) => new(_slice.Subslice(At(index), (ulong)sizeof(T)));

    /// <summary>Reads a value.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There are not so many.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T Load(ulong index) => _slice.ReadObject<T>(At(index));

    /// <summary>Writes a value, then marks it.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There are not so many.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void Store(ulong index, T value) => _slice.WriteObject(At(index), value);

    /// <summary>Copies values out, as many as both hold; returns how many. See <see cref="VolatileSlice.CopyTo"/>.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public int CopyTo(Span<T> destination) => _slice.CopyTo(destination);

    /// <summary>Copies values in, as many as both hold, and marks them.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void CopyFrom(ReadOnlySpan<T> source) => _slice.CopyFrom(source);

    /// <summary>Copies the bytes to a slice, as many as both have, and marks them there.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void CopyToVolatileSlice(VolatileSlice destination) => _slice.CopyToVolatileSlice(destination);

    /// <summary>The type, the number of values and the bytes, for debuggers.</summary>
    public override string ToString() => $"{typeof(T).Name}[{Count}], {_slice}";

    /// <summary>Its bytes.</summary>
    public VolatileSlice ToSlice() => _slice;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ulong At(ulong index)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(index, Count);
        return index * (ulong)sizeof(T);
    }
}
