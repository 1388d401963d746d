namespace GuestMemory.Core;

/// <summary>
/// The host address of a slice, for a system call (vm-memory's PtrGuard): the memory stays mapped until disposal. What is written
/// through it is not marked as dirty, and nothing protects from pages that cannot be had.
/// </summary>
public readonly unsafe ref struct PtrGuard
{
    private readonly MmapRegion.MappingLease _lease;
    private readonly object? _keep;

    internal PtrGuard(AccessGate? gate, byte* address, ulong size)
    {
        if (gate?.Region is { } region) _lease = region.Lease();
        _keep = gate?.Keep;
        Pointer = (nint)address;
        Size = size;
    }

    /// <summary>The address of the first byte.</summary>
    public nint Pointer { get; }

    /// <summary>The length in bytes.</summary>
    public ulong Size { get; }

    /// <summary>Lets the memory go.</summary>
    public void Dispose()
    {
        _lease.Dispose();
        GC.KeepAlive(_keep);
    }
}
