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
    public int Read(ulong offset, Span<byte> destination)
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
    public int Write(ulong offset, ReadOnlySpan<byte> source)
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
    public void ReadExact(ulong offset, Span<byte> destination)
    {
        var done = Read(offset, destination);
        if (done != destination.Length) ThrowPartial(destination.Length, done);
    }

    /// <summary>Writes the whole buffer (vm-memory's write_slice).</summary>
    /// <exception cref="PartialBufferException">The slice ends before; what has room is written.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="Write"/>.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void WriteExact(ulong offset, ReadOnlySpan<byte> source)
    {
        var done = Write(offset, source);
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
    public void WriteObject<T>(ulong offset, T value)
        where T : unmanaged
    {
        if (IsSingle<T>(offset))
        {
            VolatileCopy.Store(_address + offset, value);
            // Written, with the sum computed only where it is needed.
            if (_memory.MustMark) _memory.Mark(unchecked(_origin + offset), (ulong)sizeof(T));
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
    /// <param name="offset">Where; the address must be a multiple of the size.</param>
    /// <param name="value">The integer.</param>
    /// <param name="ordering">Relaxed, Release or SeqCst.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public void Store<T>(ulong offset, T value, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        GetAtomicRef<T>(offset).Store(value, ordering);
        _memory.Written(unchecked(_origin + offset), (ulong)sizeof(T));
    }

    // Apart, and given the fields, so that the quick ways above keep their slice in registers.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static T ReadObjectSlowly<T>(VolatileMemory memory, byte* address, ulong size, ulong offset)
        where T : unmanaged
    {
        Unsafe.SkipInit(out T result);
        new VolatileSlice(memory, address, size, 0).ReadExact(offset, new Span<byte>(&result, sizeof(T)));
        return result;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void WriteObjectSlowly<T>(VolatileMemory memory, byte* address, ulong size, ulong origin, T value, ulong offset)
        where T : unmanaged => new VolatileSlice(memory, address, size, origin).WriteExact(offset, new ReadOnlySpan<byte>(&value, sizeof(T)));

    /// <summary>Whether a value at an offset is there to be accessed at once: of a size that processors know, inside, and direct.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool IsSingle<T>(ulong offset)
        where T : unmanaged => sizeof(T) is 1 or 2 or 4 or 8 && Size >= (ulong)sizeof(T) && offset <= Size - (ulong)sizeof(T) && _memory.IsDirect;

    private void ThrowNotAccessible(ulong offset, MemoryProtection access, int error) => throw _memory.NotAccessible(_memory.OffsetOf(_address + offset), access, error);

    private static void ThrowPartial(int expected, int completed) => throw new PartialBufferException((ulong)expected, (ulong)completed);
}
