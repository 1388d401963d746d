using System.Buffers;

namespace GuestMemory.Core;

/// <content>Copies of values, one by one, and between slices.</content>
public readonly unsafe partial struct VolatileSlice
{
    /// <summary>
    /// Copies values out of the slice, as many as both hold; bytes behind the last whole value are left. Values of 2, 4 and 8 bytes
    /// are read one by one, each by a single access, but where the memory can be cut short (see the remarks on <see cref="VolatileSlice"/>).
    /// </summary>
    /// <returns>The number of values.</returns>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public int CopyTo<T>(Span<T> destination)
        where T : unmanaged
    {
        var count = (int)Math.Min((ulong)destination.Length, Size / (ulong)sizeof(T));
        if (count == 0) return 0;
        fixed (T* local = destination)
        {
            for (int done = 0, piece; done < count; done += piece)
            {
                piece = AtOnce<T>(count - done);
                ReadElements((T*)(_address + ((nint)done * sizeof(T))), local + done, piece);
            }
        }

        return count;
    }

    /// <summary>
    /// Copies values into the slice, as many as both hold, and marks what was written; the counterpart of <see cref="CopyTo"/>, with the
    /// same promise.
    /// </summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void CopyFrom<T>(ReadOnlySpan<T> source)
        where T : unmanaged
    {
        var count = (int)Math.Min((ulong)source.Length, Size / (ulong)sizeof(T));
        if (count == 0) return;
        fixed (T* local = source)
        {
            for (int done = 0, piece; done < count; done += piece)
            {
                piece = AtOnce<T>(count - done);
                WriteElements((T*)(_address + ((nint)done * sizeof(T))), local + done, piece);
            }
        }
    }

    /// <summary>
    /// Copies to another slice, as many bytes as both have, and marks them there. The two may overlap.
    /// </summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void CopyToVolatileSlice(VolatileSlice destination)
    {
        var count = Math.Min(Size, destination.Size);
        if (count == 0) return;
        var buffer = default(byte[]);
        // What overlaps is copied from the end that is not overwritten first.
        var backwards = destination._address > _address && destination._address < _address + count;
        try
        {
            for (ulong done = 0; done < count;)
            {
                var piece = Math.Min(VolatileCopy.Brief, count - done);
                var at = backwards ? count - done - piece : done;
                if (!TryCopyDirect(destination, at, piece))
                {
                    buffer ??= ArrayPool<byte>.Shared.Rent((int)piece);
                    ReadExact(at, buffer.AsSpan(0, (int)piece));
                    destination.WriteExact(at, buffer.AsSpan(0, (int)piece));
                }

                done += piece;
            }
        }
        finally
        {
            if (buffer is not null) ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>How many values are copied by one piece: of those that are accessed one by one so many that it is over soon, of others all.</summary>
    private int AtOnce<T>(int count)
        where T : unmanaged => sizeof(T) is 2 or 4 or 8 && (_memory.IsDirect || _memory.CanTouch) ? Math.Min(count, (int)VolatileCopy.Brief / sizeof(T)) : count;

    private void ReadElements<T>(T* memory, T* local, int count)
        where T : unmanaged
    {
        var length = (nuint)count * (nuint)sizeof(T);
        if (sizeof(T) is 2 or 4 or 8)
        {
            if (_memory.IsDirect)
            {
                for (var i = 0; i < count; i++) local[i] = VolatileCopy.Load<T>((byte*)(memory + i));
                _memory.Leave();
                return;
            }

            if (((nuint)memory & ((nuint)sizeof(T) - 1)) == 0)
            {
                using var touch = _memory.TouchElements((byte*)memory, length, MemoryProtection.Read);
                if (touch.Address != null)
                {
                    for (var i = 0; i < count; i++) local[i] = VolatileCopy.Load<T>(touch.Address + ((nint)i * sizeof(T)));
                    return;
                }
            }
        }

        var done = _memory.Read((byte*)local, (byte*)memory, length, out var error);
        if (error != 0) ThrowNotAccessible((ulong)((byte*)memory - _address) + done, MemoryProtection.Read, error);
    }

    private void WriteElements<T>(T* memory, T* local, int count)
        where T : unmanaged
    {
        var length = (nuint)count * (nuint)sizeof(T);
        var origin = unchecked(_origin + (ulong)((byte*)memory - _address));
        if (sizeof(T) is 2 or 4 or 8)
        {
            if (_memory.IsDirect)
            {
                for (var i = 0; i < count; i++) VolatileCopy.Store((byte*)(memory + i), local[i]);
                _memory.Written(origin, length);
                return;
            }

            if (((nuint)memory & ((nuint)sizeof(T) - 1)) == 0)
            {
                using var touch = _memory.TouchElements((byte*)memory, length, MemoryProtection.Write);
                if (touch.Address != null)
                {
                    for (var i = 0; i < count; i++) VolatileCopy.Store(touch.Address + ((nint)i * sizeof(T)), local[i]);
                    _memory.Written(origin, length);
                    return;
                }
            }
        }

        var done = _memory.Write((byte*)memory, (byte*)local, length, origin, out var error);
        if (error != 0) ThrowNotAccessible((ulong)((byte*)memory - _address) + done, MemoryProtection.Write, error);
    }

    /// <summary>Copies a short part to another slice without a buffer between; false where one of the two is not direct.</summary>
    private bool TryCopyDirect(VolatileSlice destination, ulong offset, ulong length)
    {
        if (!_memory.IsDirect || !destination._memory.IsDirect) return false;
        Buffer.MemoryCopy(_address + offset, destination._address + offset, length, length);
        // Marked first: where the source was taken away meanwhile, something has been written all the same.
        destination._memory.Written(unchecked(destination._origin + offset), length);
        _memory.Leave();
        return true;
    }
}
