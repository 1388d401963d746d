namespace GuestMemory.Core;

/// <summary>
/// A mapping at a guest physical address (vm-memory's GuestRegionMmap): what New-MmapRegion gives. Properties show addresses as
/// plain numbers, in bytes.
/// </summary>
public sealed class GuestRegionMmap : IGuestMemorySource, IDisposable
{
    private readonly MmapRegion _mapping;

    /// <param name="mapping">The memory; owned from here on.</param>
    /// <param name="guestAddress">The guest physical address of its first byte.</param>
    /// <param name="name">A name for people.</param>
    /// <exception cref="GuestMemoryException">ZeroSize; InvalidGuestRegion: the region would reach past 2^64 - 1.</exception>
    public GuestRegionMmap(MmapRegion mapping, GuestAddress guestAddress, string name = "")
    {
        ArgumentNullException.ThrowIfNull(mapping);
        if (mapping.Size == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A region has at least one byte.");
        CheckFits(guestAddress, mapping.Size);
        _mapping = mapping;
        GuestAddress = guestAddress.Value;
        Name = name;
    }

    /// <summary>The name.</summary>
    public string Name { get; }

    /// <summary>The first guest physical address.</summary>
    public ulong GuestAddress { get; }

    /// <summary>The last guest physical address that belongs to the region.</summary>
    public ulong LastAddress => GuestAddress + (_mapping.Size - 1);

    /// <summary>The length in bytes.</summary>
    public ulong Size => _mapping.Size;

    /// <summary>Where it is mapped in this process.</summary>
    public ulong HostAddress => _mapping.HostAddress;

    /// <summary>The size of the pages behind it, in bytes.</summary>
    public ulong PageSize => _mapping.PageSize;

    /// <summary>The protection it was mapped with.</summary>
    public MemoryProtection Protection => _mapping.Protection;

    /// <summary>The flags it was mapped with.</summary>
    public MapFlags MapFlags => _mapping.Flags;

    /// <summary>The file behind it, or null.</summary>
    public string? BackingPath => _mapping.BackingPath;

    /// <summary>Where in the file it starts, in bytes; null without a file.</summary>
    public ulong? FileOffset => _mapping.FileOffset;

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where nobody has said.</summary>
    public bool? IsHugetlbfs => _mapping.IsHugetlbfs;

    /// <summary>Whether writes are tracked.</summary>
    public bool DirtyTracking => _mapping.Bitmap is not null;

    /// <summary>Whether the region was removed.</summary>
    public bool IsDisposed => _mapping.IsDisposed;

    /// <summary>The region itself, alone.</summary>
    public IReadOnlyList<GuestRegionMmap> GetRegions() => [this];

    /// <summary>The memory behind the region.</summary>
    public MmapRegion GetMapping() => _mapping;

    /// <summary>Checks that <paramref name="size"/> bytes from an address on stay below 2^64.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestRegion.</exception>
    public static void CheckFits(GuestAddress address, ulong size)
    {
        if (address.CheckedAdd(size) is null)
        {
            throw new GuestMemoryException(GuestMemoryError.InvalidGuestRegion,
                $"A region of 0x{size:x} bytes at {address} would end past the last address, 2^64 - 1. Give a lower guest address.");
        }
    }

    /// <summary>The offset of a guest address in this region, or null where it lies elsewhere.</summary>
    public MemoryRegionAddress? ToRegionAddress(GuestAddress address) =>
        address.CheckedOffsetFrom(new GuestAddress(GuestAddress)) is { } offset && offset < Size ? new MemoryRegionAddress(offset) : null;

    /// <summary>Whether an offset lies in the region.</summary>
    public bool AddressInRange(MemoryRegionAddress address) => address.Value < Size;

    /// <summary>The offset itself where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckAddress(MemoryRegionAddress address) => AddressInRange(address) ? address : null;

    /// <summary>The offset so many bytes above another, where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckedOffset(MemoryRegionAddress start, ulong offset) => start.CheckedAdd(offset) is { } address ? CheckAddress(address) : null;

    /// <summary>Where an offset is mapped in this process. For handing on; access goes through the memory.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it lies past the end.</exception>
    public ulong GetHostAddress(MemoryRegionAddress address) => AddressInRange(address)
        ? HostAddress + address.Value
        : throw new GuestMemoryException(GuestMemoryError.InvalidBackendAddress, $"The offset {address} lies past the end of region {this}.");

    /// <summary>Which pages were written. With <paramref name="clear"/> the marks are taken: none is lost, none is seen twice.</summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; RegionDisposed.</exception>
    public DirtyBitmap GetDirtyBitmap(bool clear = false)
    {
        if (IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region '{Name}' was removed.");
        var bitmap = _mapping.Bitmap ?? throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff,
            $"Region '{Name}' has no dirty bitmap. Make it with 'New-MmapRegion -DirtyTracking'.");
        return new DirtyBitmap(GuestAddress, Size, bitmap.PageSize, clear ? bitmap.GetAndReset() : bitmap.Snapshot(), $"region {Name}");
    }

    /// <summary>Unmaps the memory; see <see cref="MmapRegion.Dispose"/>.</summary>
    public void Dispose() => _mapping.Dispose();

    /// <summary>The name and the range.</summary>
    public override string ToString() => $"{Name} [0x{GuestAddress:x}-0x{LastAddress:x}]";
}
