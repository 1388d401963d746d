namespace GuestMemory.Core.Xen;

/// <summary>Memory of another Xen domain at a guest physical address. Disposing of it unmaps the memory.</summary>
/// <param name="memory">The memory; it is released by <see cref="GuestMemoryRegion.Dispose"/>.</param>
/// <param name="guestAddress">The guest physical address of its first byte.</param>
/// <param name="name">A name for people.</param>
/// <exception cref="GuestMemoryException">ZeroSize; InvalidGuestRegion: the region would reach past 2^64 - 1.</exception>
public sealed class GuestRegionXen(XenMmapRegion memory, GuestAddress guestAddress, string name = "") : GuestMemoryRegion(memory, guestAddress, name)
{
    /// <summary>The domain whose memory it is.</summary>
    public uint DomainId => memory.XenMmapData;

    /// <summary>How it is mapped: foreign frames, granted pages, or granted pages on demand.</summary>
    public MmapXenFlags XenFlags => memory.XenMmapFlags;

    /// <summary>The flags it was mapped with.</summary>
    public MapFlags MapFlags => memory.Flags;

    /// <summary>Where it is mapped in this process; null where that is so only for the time of an access.</summary>
    public ulong? HostAddress => memory.HasHostAddress ? GetHostAddress(default) : null;
}
