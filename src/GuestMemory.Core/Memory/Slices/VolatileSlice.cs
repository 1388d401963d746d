using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// A piece of guest memory that others may read and write at the same time (vm-memory's VolatileSlice, and its VolatileMemory). A
/// small value: copy it, keep it, slice it. Accesses of 1, 2, 4 and 8 bytes at addresses that are multiples of their size never
/// tear, but for files (see the remarks); larger ones may. What is written is marked in the region's dirty bitmap, after the write. A slice of a region that was
/// removed is an error, RegionDisposed, and nothing worse. Offsets and lengths are bytes.
/// </summary>
/// <remarks>
/// On guarded memory every access goes through the kernel and costs about a microsecond; a page that cannot be had is the error
/// PageNotAccessible. Where memory can be cut short (a file, memory that the caller mapped) the kernel copies values of 2, 4 and 8 bytes in
/// steps of its own, and a value that is written at the same time may come in parts: use <see cref="Load"/> and <see cref="Store"/>, or
/// <see cref="GetAtomicRef"/>, which never tear. The same holds for kinds of memory that copy by themselves, and on kernels before Linux 5.14.
/// </remarks>
public readonly unsafe partial struct VolatileSlice
{
    // Null in the slice of nothing, which every check of a length keeps out.
    private readonly VolatileMemory _memory;
    private readonly byte* _address;
    private readonly ulong _origin;

    internal VolatileSlice(VolatileMemory memory, byte* address, ulong size, ulong origin)
    {
        _memory = memory;
        _address = address;
        Size = size;
        _origin = origin;
    }

    /// <summary>
    /// A slice of any memory, whose owner keeps it mapped as long as a slice of it is used (vm-memory's new and with_bitmap).
    /// </summary>
    /// <param name="address">The first byte.</param>
    /// <param name="size">The length in bytes.</param>
    /// <param name="bitmap">Where writes are marked; the default: nowhere.</param>
    public VolatileSlice(void* address, ulong size, BitmapSlice bitmap = default)
        : this(new PinnedMemory((byte*)address, size, bitmap), (byte*)address, size, bitmap.BaseOffset)
    {
    }

    /// <summary>The length in bytes.</summary>
    public ulong Size { get; }

    /// <summary>Whether it has no bytes.</summary>
    public bool IsEmpty => Size == 0;

    /// <summary>Where writes are marked; its offset 0 is the slice's first byte.</summary>
    public BitmapSlice Bitmap => _memory?.BitmapAt(_origin) ?? default;

    /// <summary>A slice of an array, which stays where it is as long as a slice of it is held.</summary>
    /// <param name="array">The array.</param>
    /// <param name="bitmap">Where writes are marked; the default: nowhere.</param>
    public static VolatileSlice FromArray<T>(T[] array, BitmapSlice bitmap = default)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(array);
        var pin = new ArrayPin(array);
        var size = (ulong)array.Length * (ulong)sizeof(T);
        return new VolatileSlice(new PinnedMemory(pin.Address, size, bitmap, pin), pin.Address, size, bitmap.BaseOffset);
    }

    /// <summary>The sum of two offsets.</summary>
    /// <exception cref="VolatileMemoryException">Overflow.</exception>
    public static ulong ComputeOffset(ulong start, ulong offset) => offset <= ulong.MaxValue - start ? start + offset : throw VolatileMemoryException.Overflow(start, offset);

    /// <summary>The end of a range of the slice; a range of no bytes may lie at its end.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds with the range's end; Overflow.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong ComputeEndOffset(ulong offset, ulong count)
    {
        var end = unchecked(offset + count);
        if (end < offset || end > Size) ThrowOutside(offset, count);
        return end;
    }

    /// <summary>A part of the slice (vm-memory's subslice and get_slice).</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public VolatileSlice Subslice(ulong offset, ulong count)
    {
        _ = ComputeEndOffset(offset, count);
        return new VolatileSlice(_memory, _address + offset, count, unchecked(_origin + offset));
    }

    /// <summary>The slice without its first bytes; all of them may go.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds and Overflow name host addresses, as upstream does.</exception>
    public VolatileSlice Offset(ulong count)
    {
        if (count > ulong.MaxValue - (ulong)_address) throw VolatileMemoryException.Overflow((ulong)_address, count);
        if (count > Size) throw VolatileMemoryException.OutOfBounds((ulong)_address + count);
        return new VolatileSlice(_memory, _address + count, Size - count, unchecked(_origin + count));
    }

    /// <summary>The first bytes, and the rest.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds.</exception>
    public (VolatileSlice First, VolatileSlice Second) SplitAt(ulong middle)
    {
        var rest = Offset(middle);
        return (new VolatileSlice(_memory, _address, middle, _origin), rest);
    }

    /// <summary>Keeps the memory in place and gives its address, for system calls (vm-memory's ptr_guard and ptr_guard_mut).</summary>
    /// <param name="access">What it is wanted for: memory that is mapped for each access is mapped so.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed. HostAddressNotAvailable: the memory has no address in this process. PageNotAccessible.</exception>
    public PtrGuard PtrGuard(MemoryProtection access = MemoryProtection.ReadWrite) => new(_memory, _address, Size, access);

    /// <summary>Whether the slice begins at a multiple of <paramref name="alignment"/>, a power of two.</summary>
    /// <exception cref="VolatileMemoryException">Misaligned.</exception>
    public void CheckAlignment(ulong alignment)
    {
        if (!ulong.IsPow2(alignment)) throw new ArgumentOutOfRangeException(nameof(alignment), alignment, "An alignment is a power of two.");
        if (((ulong)_address & (alignment - 1)) != 0) throw VolatileMemoryException.Misaligned((ulong)_address, alignment);
    }

    /// <summary>One value at an offset, at any alignment.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow.</exception>
    public VolatileRef<T> GetRef<T>(ulong offset)
        where T : unmanaged => new(Subslice(offset, (ulong)sizeof(T)));

    /// <summary>Values one behind the other from an offset on.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="count">How many values.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow; TooBig: so many do not fit in any memory.</exception>
    public VolatileArrayRef<T> GetArrayRef<T>(ulong offset, ulong count)
        where T : unmanaged
    {
        var size = (UInt128)count * (ulong)sizeof(T);
        if (size > long.MaxValue) throw VolatileMemoryException.TooBig(count, (ulong)sizeof(T));
        return new VolatileArrayRef<T>(Subslice(offset, (ulong)size));
    }

    /// <summary>A value for atomic operations, which mark nothing as dirty.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow; Misaligned: the address is no multiple of the size.</exception>
    public AtomicRef<T> GetAtomicRef<T>(ulong offset)
        where T : unmanaged, IBinaryInteger<T> => new(_memory, Aligned<T>(offset));

    /// <summary>
    /// A reference to a value in place (vm-memory's aligned_as_ref), to read it as often as one likes until the lease is disposed of.
    /// Others may write what it refers to.
    /// </summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: the memory is guarded.</exception>
    public ReadOnlySpanLease<T> AlignedAsRef<T>(ulong offset)
        where T : unmanaged => new(AlignedAsMut<T>(offset));

    /// <summary>The same to write to; what is written is not marked as dirty.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: the memory is guarded. RegionDisposed.</exception>
    public SpanLease<T> AlignedAsMut<T>(ulong offset)
        where T : unmanaged
    {
        _ = ComputeEndOffset(offset, (ulong)sizeof(T));
        var at = _address + offset;
        var alignment = (ulong)AlignmentOf<T>();
        if (((ulong)at & (alignment - 1)) != 0) throw VolatileMemoryException.Misaligned((ulong)at, alignment);
        var lease = SpanLease<T>.TryBegin(_memory, at, 1);
        if (!lease.Span.IsEmpty) return lease;
        throw (_memory.IsDisposed ? VolatileMemory.RegionDisposed() : VolatileMemory.NoHostAddress());
    }

    /// <summary>The memory as a span, or an empty one: guarded memory, more than 2 GiB, or removed.</summary>
    internal SpanLease<byte> AsSpan() => _memory is not null && Size <= int.MaxValue ? SpanLease<byte>.TryBegin(_memory, _address, (int)Size) : default;

    /// <summary>The range and the state of the memory, for debuggers and messages: "0x10 bytes at offset 0x1000, guarded".</summary>
    public override string ToString() => _memory is null ? "nothing" : $"0x{Size:x} bytes at offset 0x{_memory.OffsetOf(_address):x}{VolatileMemory.StateText(_memory.State)}";

    internal static int AlignmentOf<T>()
        where T : unmanaged => sizeof(AlignmentProbe<T>) - sizeof(T);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private byte* Aligned<T>(ulong offset)
        where T : unmanaged
    {
        _ = ComputeEndOffset(offset, (ulong)sizeof(T));
        var at = _address + offset;
        if (((ulong)at & ((ulong)sizeof(T) - 1)) != 0) ThrowMisaligned(at, (ulong)sizeof(T));
        return at;
    }

    private static void ThrowMisaligned(byte* at, ulong alignment) => throw VolatileMemoryException.Misaligned((ulong)at, alignment);

    private void ThrowOutside(ulong offset, ulong count) =>
        throw (count > ulong.MaxValue - offset ? VolatileMemoryException.Overflow(offset, count) : VolatileMemoryException.OutOfBounds(offset + count));

#pragma warning disable CS0649 // Only its size is of interest: what the compiler puts between the two.
    private struct AlignmentProbe<T>
        where T : unmanaged
    {
        public byte First;
        public T Second;
    }
#pragma warning restore CS0649
}
