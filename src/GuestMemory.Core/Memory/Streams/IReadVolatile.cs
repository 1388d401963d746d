namespace GuestMemory.Core;

/// <summary>A source that memory is filled from (vm-memory's ReadVolatile).</summary>
public interface IReadVolatile
{
    /// <summary>Reads once into a slice and marks what came; returns the bytes, 0 at the end of the source.</summary>
    /// <exception cref="Interop.SyscallException">Reading failed; the whole slice is marked, since a part may have come.</exception>
    ulong ReadVolatile(VolatileSlice slice);

    /// <summary>Fills a slice.</summary>
    /// <exception cref="GuestMemoryException">UnexpectedEof: the source ended before.</exception>
    void ReadExactVolatile(VolatileSlice slice);
}
