namespace GuestMemory.Core;

/// <summary>
/// A mapping at a guest physical address (vm-memory's GuestRegionMmap). Properties show addresses as
/// plain numbers, in bytes.
/// </summary>
public sealed class GuestRegionMmap : GuestMemoryRegion, IGuestMemorySource, IDisposable
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
        Size = mapping.Size;
        GuestAddress = guestAddress.Value;
        Name = name;
    }

    /// <summary>The name.</summary>
    public string Name { get; }

    /// <inheritdoc/>
    public override ulong GuestAddress { get; }

    /// <inheritdoc/>
    public override ulong Size { get; }

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
    public ulong? FileOffset => _mapping.File?.Start;

    /// <inheritdoc/>
    public override bool? IsHugetlbfs => _mapping.IsHugetlbfs;

    /// <summary>Whether writes are tracked.</summary>
    public bool DirtyTracking => _mapping.Bitmap?.Tracker is not null;

    /// <summary>The shared log that writes are marked in: its file; null where the bitmap is this process's own.</summary>
    public string? DirtyLog => (_mapping.Bitmap?.Tracker as AtomicBitmapMmap)?.Log.Path;

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

    /// <inheritdoc/>
    public override BitmapSlice GetBitmap() => new(_mapping.Bitmap);

    /// <inheritdoc/>
    public override ulong GetHostAddress(MemoryRegionAddress address) => AddressInRange(address)
        ? HostAddress + address.Value
        : throw new GuestMemoryException(GuestMemoryError.InvalidBackendAddress, $"The offset {address} lies past the end of region {this}.") { Address = address.Value };

    /// <inheritdoc/>
    public override FileOffset? GetFileOffset() => _mapping.File;

    /// <inheritdoc/>
    public override ReadOnlySpan<byte> AsSlice() => _mapping.AsVolatileSlice().AsSpan();

    /// <inheritdoc/>
    public override Span<byte> AsMutSlice() => _mapping.AsVolatileSlice().AsSpan();

    /// <inheritdoc/>
    public override VolatileSlice AsVolatileSlice() => _mapping.AsVolatileSlice();

    /// <inheritdoc/>
    public override VolatileSlice GetSlice(MemoryRegionAddress offset, ulong count)
    {
        // Nearly always the whole region, or inside it.
        if (offset.Value <= Size && count <= Size - offset.Value) return _mapping.GetSlice(offset.Value, count);
        try
        {
            return _mapping.GetSlice(offset.Value, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    // The two that are called most know their way without a slice.

    /// <inheritdoc/>
    public override int Read(Span<byte> destination, MemoryRegionAddress address)
    {
        if (destination.IsEmpty) return 0;
        if (address.Value >= Size) throw Outside(address);
        var count = _mapping.TryRead(address.Value, destination, out var error);
        if (error != 0) throw _mapping.NotAccessible(address.Value + (ulong)count, write: false, "process_vm_readv", error);
        return count;
    }

    /// <inheritdoc/>
    public override int Write(ReadOnlySpan<byte> source, MemoryRegionAddress address)
    {
        if (source.IsEmpty) return 0;
        if (address.Value >= Size) throw Outside(address);
        var count = _mapping.TryWrite(address.Value, source, out var error);
        if (error != 0) throw _mapping.NotAccessible(address.Value + (ulong)count, write: true, "process_vm_writev", error);
        return count;
    }

    /// <summary>Which pages were written. With <paramref name="clear"/> the marks are taken: none is lost, and none is seen twice
    /// (but where the tracker is being replaced at that moment).</summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; RegionDisposed.</exception>
    public DirtyBitmap GetDirtyBitmap(bool clear = false)
    {
        var tracker = RequireTracker();
        return new DirtyBitmap(GuestAddress, Size, tracker, clear ? tracker.GetAndReset() : tracker.Snapshot(), $"region {Name}");
    }

    /// <summary>What writes are marked in.</summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; RegionDisposed.</exception>
    public IDirtyTracker RequireTracker()
    {
        ThrowIfDisposed();
        return _mapping.Bitmap?.Tracker ?? throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff,
            $"Region '{Name}' has no dirty bitmap, so its dirty pages are not known.");
    }

    /// <summary>
    /// Has the writes of regions marked in other trackers from now on, or in none; all regions, or none where one cannot
    /// (vhost-user-backend's handler of SET_LOG_BASE). What is marked in the former trackers stays there.
    /// </summary>
    /// <param name="regions">The regions.</param>
    /// <param name="make">Makes the tracker of a region, whose offset 0 is the region's first byte; null: no tracking.</param>
    /// <param name="keepDirty">Brings over what is marked and was not taken; upstream does not.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; what <paramref name="make"/> throws.</exception>
    public static void SetTrackers(IReadOnlyList<GuestRegionMmap> regions, Func<GuestRegionMmap, IDirtyTracker?> make, bool keepDirty)
    {
        ArgumentNullException.ThrowIfNull(regions);
        ArgumentNullException.ThrowIfNull(make);
        var trackers = new IDirtyTracker?[regions.Count];
        foreach (var region in regions) region.ThrowIfDisposed();
        for (var i = 0; i < trackers.Length; i++) trackers[i] = make(regions[i]);
        for (var i = 0; i < trackers.Length; i++) regions[i]._mapping.SetTracker(trackers[i], keepDirty);
    }

    /// <summary>Unmaps the memory; see <see cref="MmapRegion.Dispose"/>.</summary>
    public void Dispose() => _mapping.Dispose();

    private void ThrowIfDisposed()
    {
        if (IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {this} was removed; its memory is no longer mapped.");
    }

    /// <summary>The name and the range.</summary>
    public override string ToString() => $"{Name} [0x{GuestAddress:x}-0x{LastAddress:x}]";
}
