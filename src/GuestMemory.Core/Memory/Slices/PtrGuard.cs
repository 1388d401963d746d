namespace GuestMemory.Core;

/// <summary>
/// The host address of a slice, for a system call (vm-memory's PtrGuard): the memory stays mapped until disposal. What is written
/// through it is not marked as dirty, and nothing protects code that touches it from pages that cannot be had: they end the process.
/// A page-fault handler may come to lie behind the memory meanwhile, and takes the access rights with it where the region is released
/// by force; system calls then fail with EFAULT. <see cref="SpanLease{T}"/> is for code.
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
