using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <content>Transfers from sources and to sinks.</content>
public readonly unsafe partial struct VolatileSlice
{
    /// <summary>Whether the memory can be touched as it is, by the kernel or by this process.</summary>
    internal bool IsDirect => _memory.IsDirect;

    /// <summary>Fills memory from an offset on by one read of a source; returns how many bytes came.</summary>
    /// <param name="offset">The first byte; the end of the slice has room for none.</param>
    /// <param name="source">The source; it moves on.</param>
    /// <param name="count">How many bytes at the most; what is behind the end of the slice is left out.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds: the offset lies past the end.</exception>
    /// <exception cref="GuestMemoryException">What the source throws; PageNotAccessible; RegionDisposed.</exception>
    public ulong ReadVolatileFrom<TSource>(ulong offset, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct => source.ReadVolatile(AtMost(offset, count));

    /// <summary>Fills exactly so much memory from a source.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow: it does not fit.</exception>
    /// <exception cref="GuestMemoryException">UnexpectedEof, and as <see cref="ReadVolatileFrom"/>.</exception>
    public void ReadExactVolatileFrom<TSource>(ulong offset, ref TSource source, ulong count)
        where TSource : IReadVolatile, allows ref struct => source.ReadExactVolatile(Subslice(offset, count));

    /// <summary>Writes memory from an offset on by one write to a sink; returns how many bytes it took.</summary>
    /// <param name="offset">The first byte; at the end of the slice there is none.</param>
    /// <param name="sink">The sink; it moves on.</param>
    /// <param name="count">How many bytes at the most; what is behind the end of the slice is left out.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds: the offset lies past the end.</exception>
    /// <exception cref="GuestMemoryException">What the sink throws; PageNotAccessible; RegionDisposed.</exception>
    public ulong WriteVolatileTo<TSink>(ulong offset, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct => sink.WriteVolatile(AtMost(offset, count));

    /// <summary>Writes exactly so much memory to a sink.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow: there is not so much.</exception>
    /// <exception cref="GuestMemoryException">WriteZero, and as <see cref="WriteVolatileTo"/>.</exception>
    public void WriteAllVolatileTo<TSink>(ulong offset, ref TSink sink, ulong count)
        where TSink : IWriteVolatile, allows ref struct => sink.WriteAllVolatile(Subslice(offset, count));

    /// <summary>Marks the first bytes, which were written by their address.</summary>
    internal void MarkWritten(ulong count)
    {
        if (count > 0) _memory.Written(_origin, count);
    }

    private VolatileSlice AtMost(ulong offset, ulong count)
    {
        var rest = Offset(offset);
        return rest.Subslice(0, Math.Min(count, rest.Size));
    }
}
