using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <content>Access by offsets: vm-memory's Bytes, and the copies of its VolatileSlice.</content>
public readonly unsafe partial struct VolatileSlice
{
    /// <summary>Reads bytes from an offset on; returns how many there were. No bytes can be read anywhere.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds: the offset lies past the last byte.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Read(Span<byte> destination, ulong offset)
    {
        if (destination.IsEmpty) return 0;
        if (offset >= Size) ThrowOutside(offset, 0);
        var length = (nuint)Math.Min((ulong)destination.Length, Size - offset);
        fixed (byte* local = destination)
        {
            var done = _memory.Read(local, _address + offset, length, out var error);
            if (error != 0) ThrowNotAccessible(offset + done, MemoryProtection.Read, error);
        }

        return (int)length;
    }

    /// <summary>Writes bytes from an offset on and marks them; returns how many there was room for. No bytes can be written anywhere.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds: the offset lies past the last byte.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Write(ReadOnlySpan<byte> source, ulong offset)
    {
        if (source.IsEmpty) return 0;
        if (offset >= Size) ThrowOutside(offset, 0);
        var length = (nuint)Math.Min((ulong)source.Length, Size - offset);
        fixed (byte* local = source)
        {
            var done = _memory.Write(_address + offset, local, length, unchecked(_origin + offset), out var error);
            if (error != 0) ThrowNotAccessible(offset + done, MemoryProtection.Write, error);
        }

        return (int)length;
    }

    /// <summary>Fills the buffer (vm-memory's read_slice).</summary>
    /// <exception cref="PartialBufferException">The slice ends before; what it has is in the buffer.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="Read"/>.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReadExact(Span<byte> destination, ulong offset)
    {
        var done = Read(destination, offset);
        if (done != destination.Length) ThrowPartial(destination.Length, done);
    }

    /// <summary>Writes the whole buffer (vm-memory's write_slice).</summary>
    /// <exception cref="PartialBufferException">The slice ends before; what has room is written.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="Write"/>.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void WriteExact(ReadOnlySpan<byte> source, ulong offset)
    {
        var done = Write(source, offset);
        if (done != source.Length) ThrowPartial(source.Length, done);
    }

    /// <summary>Reads a value (vm-memory's read_obj).</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ReadExact"/>.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T ReadObject<T>(ulong offset)
        where T : unmanaged
    {
        if (IsSingle<T>(offset))
        {
            var value = VolatileCopy.Load<T>(_address + offset);
            _memory.Leave();
            return value;
        }

        return ReadObjectSlowly<T>(_memory, _address, Size, offset);
    }

    /// <summary>Writes a value and marks it (vm-memory's write_obj).</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteExact"/>.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void WriteObject<T>(T value, ulong offset)
        where T : unmanaged
    {
        if (IsSingle<T>(offset))
        {
            VolatileCopy.Store(_address + offset, value);
            _memory.Written(unchecked(_origin + offset), (ulong)sizeof(T));
            return;
        }

        WriteObjectSlowly(_memory, _address, Size, _origin, value, offset);
    }

    /// <summary>Loads an integer atomically.</summary>
    /// <param name="offset">Where; the address must be a multiple of the size.</param>
    /// <param name="ordering">Relaxed, Acquire or SeqCst.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T Load<T>(ulong offset, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T> => GetAtomicRef<T>(offset).Load(ordering);

    /// <summary>Stores an integer atomically, then marks it.</summary>
    /// <param name="value">The integer.</param>
    /// <param name="offset">Where; the address must be a multiple of the size.</param>
    /// <param name="ordering">Relaxed, Release or SeqCst.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void Store<T>(T value, ulong offset, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        GetAtomicRef<T>(offset).Store(value, ordering);
        _memory.Written(unchecked(_origin + offset), (ulong)sizeof(T));
    }

    /// <summary>
    /// Copies values out of the slice, as many as both hold; bytes behind the last whole value are left. Values of 2, 4 and 8 bytes
    /// are read one by one.
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
            if (sizeof(T) > 1 && IsSingle<T>(0))
            {
                for (var i = 0; i < count; i++) local[i] = VolatileCopy.Load<T>(_address + (nint)i * sizeof(T));
                _memory.Leave();
                return count;
            }

            var done = _memory.Read((byte*)local, _address, (nuint)count * (nuint)sizeof(T), out var error);
            if (error != 0) ThrowNotAccessible(done, MemoryProtection.Read, error);
        }

        return count;
    }

    /// <summary>Copies values into the slice, as many as both hold, and marks what was written; the counterpart of <see cref="CopyTo"/>.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void CopyFrom<T>(ReadOnlySpan<T> source)
        where T : unmanaged
    {
        var count = (int)Math.Min((ulong)source.Length, Size / (ulong)sizeof(T));
        if (count == 0) return;
        var length = (nuint)count * (nuint)sizeof(T);
        fixed (T* local = source)
        {
            if (sizeof(T) > 1 && IsSingle<T>(0))
            {
                for (var i = 0; i < count; i++) VolatileCopy.Store(_address + (nint)i * sizeof(T), local[i]);
                _memory.Written(_origin, length);
                return;
            }

            var done = _memory.Write(_address, (byte*)local, length, _origin, out var error);
            if (error != 0) ThrowNotAccessible(done, MemoryProtection.Write, error);
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
        if (_memory.IsDirect && destination._memory.IsDirect)
        {
            Buffer.MemoryCopy(_address, destination._address, count, count);
            // Marked first: where the source was taken away meanwhile, something has been written all the same.
            destination._memory.Written(destination._origin, count);
            _memory.Leave();
            return;
        }

        CopyThroughBuffer(destination, count);
    }

    // Apart, and given the fields, so that the quick ways above keep their slice in registers.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static T ReadObjectSlowly<T>(VolatileMemory memory, byte* address, ulong size, ulong offset)
        where T : unmanaged
    {
        Unsafe.SkipInit(out T result);
        new VolatileSlice(memory, address, size, 0).ReadExact(new Span<byte>(&result, sizeof(T)), offset);
        return result;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void WriteObjectSlowly<T>(VolatileMemory memory, byte* address, ulong size, ulong origin, T value, ulong offset)
        where T : unmanaged => new VolatileSlice(memory, address, size, origin).WriteExact(new ReadOnlySpan<byte>(&value, sizeof(T)), offset);

    /// <summary>Whether a value at an offset is there to be accessed at once: of a size that processors know, inside, and direct.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool IsSingle<T>(ulong offset)
        where T : unmanaged => sizeof(T) is 1 or 2 or 4 or 8 && Size >= (ulong)sizeof(T) && offset <= Size - (ulong)sizeof(T) && _memory.IsDirect;

    private void CopyThroughBuffer(VolatileSlice destination, ulong count)
    {
        var buffer = new byte[(int)Math.Min(count, 1 << 20)];
        // What overlaps is copied from the end that is not overwritten first.
        var backwards = destination._address > _address;
        for (ulong done = 0; done < count;)
        {
            var piece = (int)Math.Min((ulong)buffer.Length, count - done);
            var at = backwards ? count - done - (ulong)piece : done;
            ReadExact(buffer.AsSpan(0, piece), at);
            destination.WriteExact(buffer.AsSpan(0, piece), at);
            done += (ulong)piece;
        }
    }

    private void ThrowNotAccessible(ulong offset, MemoryProtection access, int error) => throw _memory.NotAccessible(_memory.OffsetOf(_address + offset), access, error);

    private static void ThrowPartial(int expected, int completed) => throw new PartialBufferException((ulong)expected, (ulong)completed);
}
