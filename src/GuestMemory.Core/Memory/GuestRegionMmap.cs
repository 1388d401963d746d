using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// A mapping at a guest physical address (vm-memory's GuestRegionMmap). Regions that are made of one
/// mapping share it: disposing of one of them unmaps the memory of all. To move a region to another address, make another one of its
/// mapping and drop the former one without disposing of it.
/// </summary>
/// <param name="mapping">The memory; it is released by <see cref="GuestMemoryRegion.Dispose"/>.</param>
/// <param name="guestAddress">The guest physical address of its first byte.</param>
/// <param name="name">A name for people.</param>
/// <exception cref="GuestMemoryException">ZeroSize; InvalidGuestRegion: the region would reach past 2^64 - 1.</exception>
public sealed class GuestRegionMmap(MmapRegion mapping, GuestAddress guestAddress, string name = "") : GuestMemoryRegion(mapping, guestAddress, name)
{
    /// <summary>Where it is mapped in this process.</summary>
    public ulong HostAddress => GetMmapRegion().HostAddress;

    /// <summary>The flags it was mapped with.</summary>
    public MapFlags MapFlags => GetMmapRegion().Flags;

    /// <summary>The file behind it, or null.</summary>
    public string? BackingPath => GetMmapRegion().BackingPath;

    /// <summary>Where in the file it starts, in bytes; null without a file.</summary>
    public ulong? FileOffset => GetFileOffset()?.Start;

    /// <summary>Maps memory at a guest address (vm-memory's from_range): anonymous, or a part of a file.</summary>
    /// <param name="guestAddress">The guest physical address of its first byte.</param>
    /// <param name="size">The bytes to map.</param>
    /// <param name="file">The file, which stays the caller's; null for anonymous memory.</param>
    /// <param name="fileOffset">Where in the file the region starts, in bytes; a multiple of the page size.</param>
    /// <param name="name">A name for people.</param>
    /// <exception cref="GuestMemoryException">InvalidGuestRegion; what <see cref="MmapRegionBuilder.Build"/> throws.</exception>
    public static GuestRegionMmap FromRange(GuestAddress guestAddress, ulong size, SafeFileHandle? file = null, ulong fileOffset = 0, string name = "")
    {
        CheckFits(guestAddress, size);
        var builder = new MmapRegionBuilder(size);
        return new GuestRegionMmap((file is null ? builder : builder.WithFile(file, fileOffset)).Build(), guestAddress, name);
    }
}
