using System.Numerics;

namespace GuestMemory.Core;

/// <content>Access by offsets: vm-memory's Bytes, on a region.</content>
public partial class GuestMemoryRegion
{
    // The two that are called most find their way without a slice.

    /// <summary>Reads bytes from an offset on; returns how many there were.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, PageNotAccessible, RegionDisposed; HostAddressNotAvailable: such memory gives no access.</exception>
    public int Read(MemoryRegionAddress address, Span<byte> destination)
    {
        if (destination.IsEmpty) return 0;
        if (address.Value >= _memory.Size) throw Outside(address);
        var count = _memory.TryRead(address.Value, destination, out var error);
        if (error != 0) ThrowInaccessible(address.Value + (ulong)count, MemoryProtection.Read, error);
        return count;
    }

    /// <summary>Writes bytes from an offset on and marks them; returns how many there was room for.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, PageNotAccessible, RegionDisposed; HostAddressNotAvailable: such memory gives no access.</exception>
    public int Write(MemoryRegionAddress address, ReadOnlySpan<byte> source)
    {
        if (source.IsEmpty) return 0;
        if (address.Value >= _memory.Size) throw Outside(address);
        var count = _memory.TryWrite(address.Value, source, out var error);
        if (error != 0) ThrowInaccessible(address.Value + (ulong)count, MemoryProtection.Write, error);
        return count;
    }

    /// <summary>Fills the buffer (vm-memory's read_slice).</summary>
    /// <exception cref="GuestMemoryException">PartialBuffer, and as <see cref="Read"/>.</exception>
    public void ReadExact(MemoryRegionAddress address, Span<byte> destination)
    {
        try
        {
            _memory.AsVolatileSlice().ReadExact(address.Value, destination);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes the whole buffer (vm-memory's write_slice).</summary>
    /// <exception cref="GuestMemoryException">PartialBuffer, and as <see cref="Write"/>.</exception>
    public void WriteExact(MemoryRegionAddress address, ReadOnlySpan<byte> source)
    {
        try
        {
            _memory.AsVolatileSlice().WriteExact(address.Value, source);
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
            return _memory.AsVolatileSlice().ReadObject<T>(address.Value);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Writes a value and marks it (vm-memory's write_obj).</summary>
    /// <exception cref="GuestMemoryException">As <see cref="WriteExact"/>.</exception>
    public void WriteObject<T>(MemoryRegionAddress address, T value)
        where T : unmanaged
    {
        try
        {
            _memory.AsVolatileSlice().WriteObject(address.Value, value);
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
            return _memory.AsVolatileSlice().Load<T>(address.Value, ordering);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Stores an integer atomically, then marks it; see <see cref="VolatileSlice.Store"/>.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it leaves the region or is not aligned. PageNotAccessible; RegionDisposed.</exception>
    public void Store<T>(MemoryRegionAddress address, T value, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        try
        {
            _memory.AsVolatileSlice().Store(address.Value, value, ordering);
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
            return _memory.AsVolatileSlice().ReadVolatileFrom(address.Value, ref source, count);
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
            _memory.AsVolatileSlice().ReadExactVolatileFrom(address.Value, ref source, count);
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
            return _memory.AsVolatileSlice().WriteVolatileTo(address.Value, ref sink, count);
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
            _memory.AsVolatileSlice().WriteAllVolatileTo(address.Value, ref sink, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    private void ThrowInaccessible(ulong offset, MemoryProtection access, int error) => throw _memory.NotAccessible(offset, access, error);
}
