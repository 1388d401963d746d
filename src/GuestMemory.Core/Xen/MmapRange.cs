using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>
/// What <see cref="XenMmapRegion.FromRange(MmapRange, CancellationToken)"/> maps (vm-memory's MmapRange). What is not set has the default
/// of upstream's from_range.
/// </summary>
/// <param name="Size">The bytes. Only grants that are mapped on demand may have none.</param>
/// <param name="Address">
/// FOREIGN: the guest physical address of the first byte, a multiple of 4096. GRANT: the grant address of the first byte, which is 4096 times
/// the grant reference; bit 63, by which virtio marks grant addresses, is left out.
/// </param>
/// <param name="XenFlags">How it is mapped (mmap_flags).</param>
/// <param name="XenData">The domain whose memory it is, from 0 to 65535 (mmap_data).</param>
public sealed record MmapRange(ulong Size, GuestAddress Address, MmapXenFlags XenFlags = MmapXenFlags.Unix, uint XenData = 0)
{
    /// <summary>The file: an ordinary one for UNIX, else the device, which <see cref="XenDevice"/> opens. It stays the caller's.</summary>
    public SafeFileHandle? File { get; init; }

    /// <summary>Where in the file the range starts, in bytes; 0 in a device.</summary>
    public ulong FileOffset { get; init; }

    /// <summary>What may be done with the memory; unset: reading and writing.</summary>
    public MemoryProtection? Protection { get; init; }

    /// <summary>The MAP_ flags; unset: NoReserve and Shared.</summary>
    public MapFlags? Flags { get; init; }

    /// <summary>Whether the memory lies on hugetlbfs, to be recorded; unset where that is not known.</summary>
    public bool? IsHugetlbfs { get; init; }

    /// <summary>Whether writes are marked in a bitmap, one bit a page.</summary>
    public bool DirtyTracking { get; init; }

    /// <summary>
    /// GRANT: the reference of each page, for references that do not follow one another; unset: those that <see cref="Address"/> names.
    /// Upstream has no such list.
    /// </summary>
    public IReadOnlyList<uint>? GrantReferences { get; init; }

    /// <summary>An ordinary mapping (vm-memory's new_unix): of a file, shared, or of anonymous memory, private.</summary>
    /// <param name="size">The bytes.</param>
    /// <param name="address">The guest physical address of the first byte.</param>
    /// <param name="file">The file; null for anonymous memory.</param>
    /// <param name="fileOffset">Where in the file it starts, in bytes; a multiple of the page size.</param>
    public static MmapRange NewUnix(ulong size, GuestAddress address, SafeFileHandle? file = null, ulong fileOffset = 0) => new(size, address)
    {
        File = file,
        FileOffset = fileOffset,
        Flags = file is null ? MapFlags.Anonymous | MapFlags.Private : MapFlags.NoReserve | MapFlags.Shared,
    };
}
