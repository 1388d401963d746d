using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// A continuous range of guest physical memory (vm-memory's GuestMemoryRegion, and the access by offsets of its
/// GuestMemoryRegionBytes). Whoever has memory of another kind derives from it and says at least where it lies and how long it is;
/// with <see cref="GetSlice"/> everything else works.
/// </summary>
public abstract class GuestMemoryRegion
{
    /// <summary>The first guest physical address (vm-memory's start_addr).</summary>
    public abstract ulong GuestAddress { get; }

    /// <summary>The length in bytes, at least 1 (vm-memory's len).</summary>
    public abstract ulong Size { get; }

    /// <summary>The last guest physical address that belongs to the region (vm-memory's last_addr).</summary>
    public ulong LastAddress => GuestAddress + (Size - 1);

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where nobody has said.</summary>
    public virtual bool? IsHugetlbfs => null;

    /// <summary>Where writes are marked (vm-memory's bitmap); offset 0 is the region's first byte.</summary>
    public abstract BitmapSlice GetBitmap();

    /// <summary>The offset itself where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckAddress(MemoryRegionAddress address) => AddressInRange(address) ? address : null;

    /// <summary>Whether an offset lies in the region.</summary>
    public bool AddressInRange(MemoryRegionAddress address) => address.Value < Size;

    /// <summary>The offset so many bytes above another, where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckedOffset(MemoryRegionAddress start, ulong offset) => start.CheckedAdd(offset) is { } address ? CheckAddress(address) : null;

    /// <summary>The offset of a guest address in this region, or null where it lies elsewhere (vm-memory's to_region_addr).</summary>
    public MemoryRegionAddress? ToRegionAddress(GuestAddress address) =>
        address.CheckedOffsetFrom(new GuestAddress(GuestAddress)) is { } offset && offset < Size ? new MemoryRegionAddress(offset) : null;

    /// <summary>Where an offset is mapped in this process. For handing on; access goes through the memory.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it lies past the end. HostAddressNotAvailable: such a region has none.</exception>
    public virtual ulong GetHostAddress(MemoryRegionAddress address) => throw NoHostAddress();

    /// <summary>The file behind the region and where in it the region starts, or null (vm-memory's file_offset).</summary>
    public virtual FileOffset? GetFileOffset() => null;

    /// <summary>
    /// The memory as a span; the null span over guarded memory, above 2 GiB, and once the region was removed. The span is good as
    /// long as the region is not removed, and others may write what it shows.
    /// </summary>
    public virtual ReadOnlySpan<byte> AsSlice() => default;

    /// <summary>The same to write to; what is written is to be marked by hand.</summary>
    public virtual Span<byte> AsMutSlice() => default;

    /// <summary>A part of the memory, in bytes.</summary>
    /// <exception cref="GuestMemoryException">
    /// InvalidBackendAddress, with the cause inside: it leaves the region. HostAddressNotAvailable: such a region gives no access.
    /// </exception>
    public virtual VolatileSlice GetSlice(MemoryRegionAddress offset, ulong count) => throw NoHostAddress();

    /// <summary>All of the memory.</summary>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable.</exception>
    public virtual VolatileSlice AsVolatileSlice() => GetSlice(default, Size);

    /// <summary>Reads bytes from an offset on; returns how many there were.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, PageNotAccessible, RegionDisposed, HostAddressNotAvailable.</exception>
    public virtual int Read(Span<byte> destination, MemoryRegionAddress address)
    {
        var slice = AsVolatileSlice();
        if (!destination.IsEmpty && address.Value >= slice.Size) throw Outside(address);
        return slice.Read(destination, address.Value);
    }

    /// <summary>Writes bytes from an offset on and marks them; returns how many there was room for.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, PageNotAccessible, RegionDisposed, HostAddressNotAvailable.</exception>
    public virtual int Write(ReadOnlySpan<byte> source, MemoryRegionAddress address)
    {
        var slice = AsVolatileSlice();
        if (!source.IsEmpty && address.Value >= slice.Size) throw Outside(address);
        return slice.Write(source, address.Value);
    }

    /// <summary>Fills the buffer (vm-memory's read_slice).</summary>
    /// <exception cref="GuestMemoryException">PartialBuffer, and as <see cref="Read"/>.</exception>
    public void ReadExact(Span<byte> destination, MemoryRegionAddress address)
    {
        try
        {
            AsVolatileSlice().ReadExact(destination, address.Value);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes the whole buffer (vm-memory's write_slice).</summary>
    /// <exception cref="GuestMemoryException">PartialBuffer, and as <see cref="Write"/>.</exception>
    public void WriteExact(ReadOnlySpan<byte> source, MemoryRegionAddress address)
    {
        try
        {
            AsVolatileSlice().WriteExact(source, address.Value);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Reads a value (vm-memory's read_obj).</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ReadExact"/>.</exception>
    public T ReadObject<T>(MemoryRegionAddress address)
        where T : unmanaged
    {
        try
        {
            return AsVolatileSlice().ReadObject<T>(address.Value);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes a value and marks it (vm-memory's write_obj).</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteExact"/>.</exception>
    public void WriteObject<T>(T value, MemoryRegionAddress address)
        where T : unmanaged
    {
        try
        {
            AsVolatileSlice().WriteObject(value, address.Value);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Loads an integer atomically; see <see cref="VolatileSlice.Load"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it leaves the region or is not aligned. PageNotAccessible; RegionDisposed.</exception>
    public T Load<T>(MemoryRegionAddress address, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        try
        {
            return AsVolatileSlice().Load<T>(address.Value, ordering);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Stores an integer atomically, then marks it; see <see cref="VolatileSlice.Store"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it leaves the region or is not aligned. PageNotAccessible; RegionDisposed.</exception>
    public void Store<T>(T value, MemoryRegionAddress address, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        try
        {
            AsVolatileSlice().Store(value, address.Value, ordering);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Fills memory by one read of a source; see <see cref="VolatileSlice.ReadVolatileFrom"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, what the source throws, PageNotAccessible, RegionDisposed.</exception>
    public ulong ReadVolatileFrom<TSource>(MemoryRegionAddress address, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct
    {
        try
        {
            return AsVolatileSlice().ReadVolatileFrom(address.Value, ref source, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Fills exactly so much memory from a source.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, UnexpectedEof, PageNotAccessible, RegionDisposed.</exception>
    public void ReadExactVolatileFrom<TSource>(MemoryRegionAddress address, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct
    {
        try
        {
            AsVolatileSlice().ReadExactVolatileFrom(address.Value, ref source, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes memory by one write to a sink; see <see cref="VolatileSlice.WriteVolatileTo"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, what the sink throws, PageNotAccessible, RegionDisposed.</exception>
    public ulong WriteVolatileTo<TSink>(MemoryRegionAddress address, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct
    {
        try
        {
            return AsVolatileSlice().WriteVolatileTo(address.Value, ref sink, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes exactly so much memory to a sink.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, WriteZero, PageNotAccessible, RegionDisposed.</exception>
    public void WriteAllVolatileTo<TSink>(MemoryRegionAddress address, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct
    {
        try
        {
            AsVolatileSlice().WriteAllVolatileTo(address.Value, ref sink, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>The error of a region for one of a slice: upstream keeps no more than that; here the cause is inside.</summary>
    internal static GuestMemoryException Convert(VolatileMemoryException cause) =>
        new(GuestMemoryError.InvalidBackendAddress, $"The access leaves its region or is not aligned: {cause.Message}", cause) { Address = cause.Address };

    private protected static GuestMemoryException Outside(MemoryRegionAddress address) => Convert(VolatileMemoryException.OutOfBounds(address.Value));

    private static GuestMemoryException NoHostAddress() => new(GuestMemoryError.HostAddressNotAvailable, "This region gives no access to its memory by host addresses.");
}
