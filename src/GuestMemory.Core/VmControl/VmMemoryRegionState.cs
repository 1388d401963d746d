namespace GuestMemory.Core.VmControl;

/// <summary>What requests have put into a VM (crosvm's <c>VmMemoryRegionState</c>). Starts empty.</summary>
public sealed class VmMemoryRegionState
{
    /// <summary>The registers that are prepared: where each lies in the guest, and in which slot.</summary>
    public IReadOnlyDictionary<Alloc, PreparedRegion> MappedRegions => Prepared;

    /// <summary>What is registered, by region id: the guest physical address of its first byte.</summary>
    public IReadOnlyDictionary<ulong, RegisteredMemory> RegisteredMemory => Registered;

    internal Dictionary<Alloc, PreparedRegion> Prepared { get; } = [];

    internal Dictionary<ulong, RegisteredMemory> Registered { get; } = [];
}
