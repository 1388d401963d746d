namespace GuestMemory.Core;

/// <summary>
/// The host address of a slice, for a system call (vm-memory's PtrGuard): the memory stays mapped until disposal. What is written
/// through it is not marked as dirty, and nothing protects from pages that cannot be had.
/// </summary>
public readonly unsafe ref struct PtrGuard
{
    private readonly VolatileMemory.AccessPin _pin;

    internal PtrGuard(VolatileMemory? memory, byte* address, ulong size, MemoryProtection access)
    {
        // The slice of nothing has no memory.
        if (memory is not null) _pin = VolatileMemory.AccessPin.Begin(memory, memory.OffsetOf(address), size, access, brief: false);
        Size = size;
    }

    /// <summary>The address of the first byte.</summary>
    public nint Pointer => (nint)_pin.Address;

    /// <summary>The length in bytes.</summary>
    public ulong Size { get; }

    /// <summary>Lets the memory go.</summary>
    public void Dispose() => _pin.Dispose();
}
