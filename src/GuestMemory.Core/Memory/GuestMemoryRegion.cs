namespace GuestMemory.Core;

/// <summary>
/// A continuous range of guest physical memory (vm-memory's GuestMemoryRegion, and the access by offsets of its
/// GuestMemoryRegionBytes): memory of any kind at a guest address. <see cref="Dispose"/> releases the memory, for every region
/// that was made of it. Properties show addresses as plain numbers; offsets and sizes are bytes.
/// </summary>
public partial class GuestMemoryRegion : IGuestMemorySource, IDisposable
{
    private readonly VolatileMemory _memory;

    /// <param name="memory">The memory. It is the region's from here on, or shared with the other regions that are made of it.</param>
    /// <param name="guestAddress">The guest physical address of its first byte.</param>
    /// <param name="name">A name for people.</param>
    /// <exception cref="GuestMemoryException">ZeroSize; InvalidGuestRegion: the region would reach past 2^64 - 1.</exception>
    public GuestMemoryRegion(VolatileMemory memory, GuestAddress guestAddress, string name = "")
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (memory.Size == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A region has at least one byte.");
        CheckFits(guestAddress, memory.Size);
        _memory = memory;
        Name = name;
        GuestAddress = guestAddress.Value;
        Size = memory.Size;
    }

    /// <summary>The name.</summary>
    public string Name { get; }

    /// <summary>The first guest physical address (vm-memory's start_addr).</summary>
    public ulong GuestAddress { get; }

    /// <summary>The length in bytes, at least 1 (vm-memory's len).</summary>
    public ulong Size { get; }

    /// <summary>The last guest physical address that belongs to the region (vm-memory's last_addr).</summary>
    public ulong LastAddress => GuestAddress + (Size - 1);

    /// <summary>The size of the pages behind it, in bytes.</summary>
    public ulong PageSize => _memory.PageSize;

    /// <summary>What may be done with its memory.</summary>
    public MemoryProtection Protection => _memory.Protection;

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where that is not known.</summary>
    public bool? IsHugetlbfs => _memory.IsHugetlbfs;

    /// <summary>Whether writes are tracked; the log of a front end that migrates the VM does not count.</summary>
    public bool DirtyTracking => _memory.Bitmap?.Tracker is not null;

    /// <summary>The shared log that writes are marked in: its file; null where the bitmap is this process's own.</summary>
    public string? DirtyLog => (_memory.Bitmap?.Tracker as AtomicBitmapMmap)?.Log.Path;

    /// <summary>Whether the region was removed.</summary>
    public bool IsDisposed => _memory.IsDisposed;

    internal VolatileMemory Memory => _memory;

    /// <summary>The other process whose memory it is, or null.</summary>
    internal virtual IMemoryProcess? Process => null;

    /// <summary>The region itself, alone.</summary>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => [this];

    /// <summary>The memory behind the region.</summary>
    public VolatileMemory GetMemory() => _memory;

    /// <summary>The mapping behind the region (vm-memory's get_mmap).</summary>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: its memory is not a mapping of this process.</exception>
    public MmapRegion GetMmapRegion() => _memory as MmapRegion ?? throw new GuestMemoryException(GuestMemoryError.HostAddressNotAvailable,
        $"Region {this} is not an ordinary mapping of this process. A memory slot of a VM, the hand-over to a page-fault handler and the release of pages need one.");

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

    /// <summary>The offset itself where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckAddress(MemoryRegionAddress address) => AddressInRange(address) ? address : null;

    /// <summary>Whether an offset lies in the region.</summary>
    public bool AddressInRange(MemoryRegionAddress address) => address.Value < Size;

    /// <summary>The offset so many bytes above another, where it lies in the region, or null.</summary>
    public MemoryRegionAddress? CheckedOffset(MemoryRegionAddress start, ulong offset) => start.CheckedAdd(offset) is { } address ? CheckAddress(address) : null;

    /// <summary>The offset of a guest address in this region, or null where it lies elsewhere (vm-memory's to_region_addr).</summary>
    public MemoryRegionAddress? ToRegionAddress(GuestAddress address) =>
        address.CheckedOffsetFrom(new GuestAddress(GuestAddress)) is { } offset && offset < Size ? new MemoryRegionAddress(offset) : null;

    /// <summary>
    /// Where an offset is mapped in this process (vm-memory's get_host_address), to hand it on. Nothing keeps the memory there, nor a
    /// page-fault handler from coming to lie behind it; access goes through the memory.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: it lies past the end. HostAddressNotAvailable: such memory has none.</exception>
    public ulong GetHostAddress(MemoryRegionAddress address) => AddressInRange(address) ? _memory.GetHostAddress(address.Value) : throw Outside(address);

    /// <summary>The file behind the region and where in it the region starts, or null (vm-memory's file_offset).</summary>
    public FileOffset? GetFileOffset() => _memory.File;

    /// <summary>
    /// The memory as a span (vm-memory's as_slice), until the lease is disposed of; an empty one over guarded memory, above 2 GiB, and
    /// once the region was removed. Others may write what it shows.
    /// </summary>
    public ReadOnlySpanLease<byte> AsSlice() => new(AsMutSlice());

    /// <summary>The same to write to (vm-memory's as_mut_slice); what is written is to be marked by hand.</summary>
    public SpanLease<byte> AsMutSlice() => _memory.AsVolatileSlice().AsSpan();

    /// <summary>All of the memory.</summary>
    public VolatileSlice AsVolatileSlice() => _memory.AsVolatileSlice();

    /// <summary>A part of the memory, in bytes.</summary>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress, with the cause inside: it leaves the region.</exception>
    public VolatileSlice GetSlice(MemoryRegionAddress offset, ulong count)
    {
        // Nearly always the whole region, or inside it.
        if (offset.Value <= Size && count <= Size - offset.Value) return _memory.GetSlice(offset.Value, count);
        try
        {
            return _memory.GetSlice(offset.Value, count);
        }
        catch (VolatileMemoryException exception)
        {
            throw Convert(exception);
        }
    }

    /// <summary>Where writes are marked (vm-memory's bitmap); offset 0 is the region's first byte.</summary>
    public BitmapSlice GetBitmap() => new(_memory.Bitmap);

    /// <summary>Which pages were written. With <paramref name="clear"/> the marks are taken: none is lost, and none is seen twice
    /// (but where the tracker is being replaced at that moment). Where writes are marked in the log of a front end alone, those are read.</summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; LogOfFrontEnd: the marks are to be taken, and are the front end's; RegionDisposed.</exception>
    public DirtyBitmap GetDirtyBitmap(bool clear = false)
    {
        ThrowIfDisposed();
        var (tracker, words) = _memory.Bitmap?.Read(clear) ?? throw TrackingOff();
        return new DirtyBitmap(GuestAddress, Size, tracker, words, $"region {Name}");
    }

    /// <summary>What writes are marked in.</summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; LogOfFrontEnd: they are marked in the log of a front end alone; RegionDisposed.</exception>
    public IDirtyTracker RequireTracker()
    {
        ThrowIfDisposed();
        var tracker = _memory.Bitmap?.Installed ?? throw TrackingOff();
        return tracker is LoggedTracker logged ? logged.RequireOwn() : tracker;
    }

    /// <summary>
    /// Has the writes of regions marked in other trackers from now on, or in none; all regions, or none where one cannot
    /// (vhost-user-backend's handler of SET_LOG_BASE). What is marked in the former trackers stays there.
    /// </summary>
    /// <param name="regions">The regions.</param>
    /// <param name="make">Makes the tracker of a region, whose offset 0 is the region's first byte; null: no tracking.</param>
    /// <param name="keepDirty">Brings over what is marked and was not taken; upstream does not.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; what <paramref name="make"/> throws.</exception>
    public static void SetTrackers(IReadOnlyList<GuestMemoryRegion> regions, Func<GuestMemoryRegion, IDirtyTracker?> make, bool keepDirty)
    {
        ArgumentNullException.ThrowIfNull(regions);
        ArgumentNullException.ThrowIfNull(make);
        SetAll(regions, make, (memory, tracker) => memory.SetTracker(tracker, keepDirty));
    }

    /// <summary>Has the writes of regions marked also in the log of a front end from now on, in the place of its former one; all regions, or none where one cannot.</summary>
    /// <param name="regions">The regions.</param>
    /// <param name="make">Makes a region's part of the log; null: none.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; what <paramref name="make"/> throws.</exception>
    internal static void SetLogs(IReadOnlyList<GuestMemoryRegion> regions, Func<GuestMemoryRegion, AtomicBitmapMmap?> make) =>
        SetAll(regions, make, static (memory, log) => memory.SetLog(log));

    /// <summary>Releases the memory, also while a handler or a VM uses it, and for every region that is made of it.</summary>
    public void Dispose()
    {
        _memory.Dispose();
        GC.SuppressFinalize(this);
    }

    /// <summary>The name and the range.</summary>
    public override string ToString() => $"{Name} [0x{GuestAddress:x}-0x{LastAddress:x}]";

    internal void ThrowIfDisposed()
    {
        if (IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {this} was removed; its memory is no longer mapped.");
    }

    /// <summary>The error of a region for one of a slice: upstream keeps no more than that; here the cause is inside.</summary>
    internal static GuestMemoryException Convert(VolatileMemoryException cause) =>
        new(GuestMemoryError.InvalidBackendAddress, $"The access leaves its region or is not aligned: {cause.Message}", cause) { Address = cause.Address };

    private static void SetAll<T>(IReadOnlyList<GuestMemoryRegion> regions, Func<GuestMemoryRegion, T> make, Action<VolatileMemory, T> set)
    {
        foreach (var region in regions) region.ThrowIfDisposed();
        var made = regions.Select(make).ToArray();
        for (var i = 0; i < made.Length; i++) set(regions[i]._memory, made[i]);
    }

    private static GuestMemoryException Outside(MemoryRegionAddress address) => Convert(VolatileMemoryException.OutOfBounds(address.Value));

    private GuestMemoryException TrackingOff() => new(GuestMemoryError.DirtyTrackingOff,
        $"Region '{Name}' has no dirty bitmap, so its dirty pages are not known.");
}
