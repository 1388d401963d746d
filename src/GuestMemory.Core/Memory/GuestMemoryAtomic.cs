namespace GuestMemory.Core;

/// <summary>
/// An address space that can be replaced while others use it (vm-memory's GuestMemoryAtomic): readers take the one of the moment
/// without a lock and keep it as long as they like; writers take turns.
/// </summary>
public sealed class GuestMemoryAtomic(GuestMemoryMmap memory)
{
    private readonly Lock _lock = new();
    private volatile GuestMemoryMmap _memory = memory;

    /// <summary>The address space of the moment. What is taken stays as it is, whatever replaces it.</summary>
    public GuestMemoryMmap Memory => _memory;

    /// <summary>The regions of the moment, for debuggers and messages.</summary>
    public override string ToString() => _memory.ToString();

    /// <summary>
    /// Replaces the address space by what a function makes of it; no other thread replaces it meanwhile. Where the function throws,
    /// nothing changes. Returns the new one.
    /// </summary>
    public GuestMemoryMmap Replace(Func<GuestMemoryMmap, GuestMemoryMmap> change)
    {
        ArgumentNullException.ThrowIfNull(change);
        lock (_lock) return _memory = change(_memory);
    }
}
