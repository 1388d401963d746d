namespace GuestMemory.Core;

/// <summary>A sink that memory is written to (vm-memory's WriteVolatile).</summary>
public interface IWriteVolatile
{
    /// <summary>Writes a slice, or a part of it, once; returns the bytes that the sink took.</summary>
    /// <exception cref="Interop.SyscallException">Writing failed.</exception>
    ulong WriteVolatile(VolatileSlice slice);

    /// <summary>Writes all of a slice.</summary>
    /// <exception cref="GuestMemoryException">WriteZero: the sink takes no more.</exception>
    void WriteAllVolatile(VolatileSlice slice);
}
