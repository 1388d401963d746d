namespace GuestMemory.Core;

/// <summary>One value in guest memory (vm-memory's VolatileRef). 1, 2, 4 and 8 bytes at a multiple of their size never
/// tear, but where the memory can be cut short: a file (see the remarks on <see cref="VolatileSlice"/>).</summary>
/// <typeparam name="T">Plain data.</typeparam>
public readonly struct VolatileRef<T>
    where T : unmanaged
{
    private readonly VolatileSlice _slice;

    internal VolatileRef(VolatileSlice slice) => _slice = slice;

    /// <summary>The size of the value in bytes (vm-memory's len).</summary>
    public ulong Size => _slice.Size;

    /// <summary>Where writes are marked.</summary>
    public BitmapSlice Bitmap => _slice.Bitmap;

    /// <summary>Reads the value.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T Load() => _slice.ReadObject<T>(0);

    /// <summary>Writes the value, then marks it.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void Store(T value) => _slice.WriteObject(0, value);

    /// <summary>The type and the bytes, for debuggers.</summary>
    public override string ToString() => $"{typeof(T).Name}, {_slice}";

    /// <summary>Its bytes.</summary>
    public VolatileSlice ToSlice() => _slice;
}
