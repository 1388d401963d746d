using System.Buffers;
using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <content>Access at guest addresses: bytes, slices, values, atomics and streams.</content>
public sealed unsafe partial class GuestMemoryMmap
{
    /// <summary>Reads bytes; returns how many came before the first unmapped address.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. PageNotAccessible. GuestAddressOverflow.</exception>
    public int Read(GuestAddress address, Span<byte> destination)
    {
        var done = 0;
        while (done < destination.Length && Locate(address, done, out var region, out var offset))
            done += Part(region, offset, region.Memory.TryRead(offset, destination[done..], out var error), error, MemoryProtection.Read);
        return done;
    }

    /// <summary>Writes bytes and marks them dirty; returns how many went before the first unmapped address.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. PageNotAccessible. GuestAddressOverflow.</exception>
    public int Write(GuestAddress address, ReadOnlySpan<byte> source)
    {
        var done = 0;
        while (done < source.Length && Locate(address, done, out var region, out var offset))
            done += Part(region, offset, region.Memory.TryWrite(offset, source[done..], out var error), error, MemoryProtection.Write);
        return done;
    }

    /// <summary>Reads exactly as many bytes as the buffer has.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Read(GuestAddress, Span{byte})"/>, and PartialBuffer where the range runs into a hole.</exception>
    public void ReadExact(GuestAddress address, Span<byte> destination) => ThrowIfPartial(address, (ulong)destination.Length, (ulong)Read(address, destination), "read");

    /// <summary>Writes all the bytes.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Write(GuestAddress, ReadOnlySpan{byte})"/>, and PartialBuffer where the range runs into a hole.</exception>
    public void WriteExact(GuestAddress address, ReadOnlySpan<byte> source) => ThrowIfPartial(address, (ulong)source.Length, (ulong)Write(address, source), "written");

    /// <summary>Writes all bytes of a sequence, as a PipeReader gives it, one segment behind the other.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteExact(GuestAddress, ReadOnlySpan{byte})"/>.</exception>
    public void WriteExact(GuestAddress address, in ReadOnlySequence<byte> source)
    {
        ulong done = 0;
        foreach (var segment in source)
        {
            var at = address.CheckedAdd(done) ?? throw Overflow(address, (ulong)source.Length);
            if (segment.IsEmpty) continue;
            if (done > 0 && !AddressInRange(at)) break;
            var count = Write(at, segment.Span);
            done += (ulong)count;
            if (count < segment.Length) break;
        }

        ThrowIfPartial(address, (ulong)source.Length, done, "written");
    }

    /// <summary>A part of one region, in bytes (vm-memory's get_slice).</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress; InvalidBackendAddress: it leaves the region.</exception>
    public VolatileSlice GetSlice(GuestAddress address, ulong count)
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        return region.GetSlice(new MemoryRegionAddress(address.Value - region.GuestAddress), count);
    }

    /// <summary>
    /// A range as slices, one a region, as they are asked for (vm-memory's get_slices). An address that is not mapped is an error where
    /// it is reached, and the end.
    /// </summary>
    /// <param name="address">The first byte.</param>
    /// <param name="count">How many bytes.</param>
    /// <param name="access">What they are wanted for: a region that does not allow it is an error like a hole (PageNotAccessible).</param>
    public GuestMemorySlices GetSlices(GuestAddress address, ulong count, MemoryProtection access = MemoryProtection.None) => new(this, address, count, access, throwLater: true);

    /// <summary>Reads a value (vm-memory's read_obj); it may lie in regions that touch.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ReadExact(GuestAddress, Span{byte})"/>.</exception>
    public T ReadObject<T>(GuestAddress address)
        where T : unmanaged
    {
        if (FindDirect(address, sizeof(T), out var offset) is { } mapping) return mapping.AsVolatileSlice().ReadObject<T>(offset);
        Unsafe.SkipInit(out T value);
        ReadExact(address, new Span<byte>(&value, sizeof(T)));
        return value;
    }

    /// <summary>Writes a value and marks it (vm-memory's write_obj); it may lie in regions that touch.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteExact(GuestAddress, ReadOnlySpan{byte})"/>.</exception>
    public void WriteObject<T>(GuestAddress address, T value)
        where T : unmanaged
    {
        if (FindDirect(address, sizeof(T), out var offset) is { } mapping) mapping.AsVolatileSlice().WriteObject(offset, value);
        else WriteExact(address, new ReadOnlySpan<byte>(&value, sizeof(T)));
    }

    /// <summary>Loads an integer atomically; see <see cref="VolatileSlice.Load"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress; InvalidBackendAddress: it lies in two regions, or is not aligned. PageNotAccessible.</exception>
    public T Load<T>(GuestAddress address, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        return region.Load<T>(new MemoryRegionAddress(address.Value - region.GuestAddress), ordering);
    }

    /// <summary>Stores an integer atomically, then marks it; see <see cref="VolatileSlice.Store"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress; InvalidBackendAddress: it lies in two regions, or is not aligned. PageNotAccessible.</exception>
    public void Store<T>(GuestAddress address, T value, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        region.Store(new MemoryRegionAddress(address.Value - region.GuestAddress), value, ordering);
    }

    /// <summary>
    /// Fills memory from a source; returns how many bytes came. In the last region of the range the source is read once. In those before
    /// it a short read is gone on with until the region is full or the source has ended, where upstream leaves a gap.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. What the source throws; PageNotAccessible.</exception>
    public ulong ReadVolatileFrom<TSource>(GuestAddress address, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct
    {
        ulong total = 0;
        foreach (var slice in GetSlices(address, count).StopOnError())
        {
            ulong done = 0;
            do
            {
                var came = source.ReadVolatile(slice.Offset(done));
                if (came == 0) return total + done;
                done += came;
            }
            while (done < slice.Size && total + slice.Size < count);
            total += done;
        }

        return total;
    }

    /// <summary>Fills exactly so much memory from a source, which is read as often as it takes.</summary>
    /// <exception cref="PartialBufferException">The source ends, or the range runs into a hole; what came is in the memory.</exception>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. What the source throws; PageNotAccessible.</exception>
    public void ReadExactVolatileFrom<TSource>(GuestAddress address, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct
    {
        ulong total = 0;
        foreach (var slice in GetSlices(address, count).StopOnError())
        {
            for (ulong done = 0; done < slice.Size;)
            {
                var came = source.ReadVolatile(slice.Offset(done));
                if (came == 0) throw new PartialBufferException(count, total + done, $"The source ended after {total + done} of {count} bytes for {address}.");
                done += came;
            }

            total += slice.Size;
        }

        ThrowIfPartial(address, count, total, "filled");
    }

    /// <summary>Writes memory to a sink, region by region; returns how many bytes were mapped.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. WriteZero; PageNotAccessible.</exception>
    public ulong WriteVolatileTo<TSink>(GuestAddress address, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct
    {
        ulong total = 0;
        foreach (var slice in GetSlices(address, count).StopOnError())
        {
            sink.WriteAllVolatile(slice);
            total += slice.Size;
        }

        return total;
    }

    /// <summary>Writes exactly so much memory to a sink.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteVolatileTo"/>, and PartialBuffer where the range runs into a hole.</exception>
    public void WriteAllVolatileTo<TSink>(GuestAddress address, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct => ThrowIfPartial(address, count, WriteVolatileTo(address, ref sink, count), "written");

    /// <summary>The direct memory that holds so many bytes in one region, or null; what else there is has its own way, and its errors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private VolatileMemory? FindDirect(GuestAddress address, int size, out ulong offset)
    {
        offset = 0;
        if (FindRegion(address) is not { } region) return null;
        offset = address.Value - region.GuestAddress;
        var memory = region.Memory;
        return region.Size - offset >= (ulong)size && !memory.IsGuarded ? memory : null;
    }

    /// <summary>The slice of the range's beginning, as far as one region reaches; the error where there is none.</summary>
    internal VolatileSlice FirstSlice(GuestAddress address, ulong count, MemoryProtection access)
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        if (!region.Protection.Allows(access)) throw Inaccessible(region, address, access, 0, null);
        var offset = address.Value - region.GuestAddress;
        return region.GetSlice(new MemoryRegionAddress(offset), Math.Min(count, region.Size - offset));
    }

    private bool Locate(GuestAddress address, int done, out GuestMemoryRegion region, out ulong offset)
    {
        var at = address.CheckedAdd((ulong)done) ?? throw Overflow(address, (ulong)done);
        region = FindRegion(at)!;
        offset = region is null ? 0 : at.Value - region.GuestAddress;
        return region is not null || (done > 0 ? false : throw Unmapped(address));
    }

    private static int Part(GuestMemoryRegion region, ulong offset, int count, int error, MemoryProtection access)
    {
        if (error != 0) ThrowInaccessible(region, offset + (ulong)count, access, error);
        return count;
    }

    private static void ThrowInaccessible(GuestMemoryRegion region, ulong offset, MemoryProtection access, int error) =>
        throw Inaccessible(region, new GuestAddress(region.GuestAddress + offset), access, error, region.Memory.Cause(offset, access, error));
}
