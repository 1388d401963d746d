using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Xen;

/// <summary>
/// Memory of another Xen domain (vm-memory's MmapRegion, xen build): its frames, or pages that it grants. What is mapped in advance is direct
/// memory with a host address; granted pages on demand have none, and are mapped for the time of each access. Memory that was mapped stays
/// there also when the domain ends. To use it as guest memory, make a <see cref="GuestMemoryRegion"/> of it.
/// </summary>
/// <remarks>
/// Unlike upstream: an access that cannot be mapped is an error and not the end of the process, atomic operations and arrays are mapped like
/// everything else, each for its bytes, and a page that failed is never part of a mapping.
/// </remarks>
public sealed unsafe class XenMmapRegion : VolatileMemory
{
    private const ulong GrantMark = 1UL << 63;

    // What is mapped on demand at once: 256 references.
    private const ulong Piece = 1 << 20;

    private readonly FileOffset _device;
    private readonly GrantedPages? _grants;
    private readonly SafeMapping? _mapping;

    // Where it has holes: what is there, in ascending order, and no two runs touch.
    private readonly FrameRun[]? _runs;

    private XenMmapRegion(MmapRange range, MapFlags flags, FileOffset device, GrantedPages? grants, SafeMapping mapping, FrameRun[]? runs = null)
        : base((byte*)mapping.Address, range.Size, ProtectionOf(range), guarded: runs is not null || !ProtectionOf(range).Allows(MemoryProtection.ReadWrite))
    {
        (XenMmapFlags, XenMmapData, Address, Flags, _device, _grants, _runs) = (range.XenFlags, range.XenData, range.Address, flags, device, grants, runs);
        // Accesses to guarded memory hold a reference.
        _mapping = IsGuarded ? mapping : mapping.ReserveAddresses();
    }

    private XenMmapRegion(MmapRange range, MapFlags flags, FileOffset device, GrantedPages grants)
        : base(range.Size, ProtectionOf(range)) =>
        (XenMmapFlags, XenMmapData, Address, Flags, _device, _grants) = (range.XenFlags, range.XenData, range.Address, flags, device, grants);

    /// <summary>How it is mapped (vm-memory's xen_mmap_flags).</summary>
    public MmapXenFlags XenMmapFlags { get; }

    /// <summary>The domain whose memory it is (vm-memory's xen_mmap_data).</summary>
    public uint XenMmapData { get; }

    /// <summary>The address that the range named; see <see cref="MmapRange"/>.</summary>
    public GuestAddress Address { get; }

    /// <summary>The flags it was mapped with (vm-memory's flags).</summary>
    public MapFlags Flags { get; }

    /// <summary>The device, from 0 on (vm-memory's file_offset). The handle is the region's own.</summary>
    public override FileOffset File => _device;

    /// <inheritdoc/>
    public override bool MayWait => false;

    /// <inheritdoc/>
    internal override bool CanTouch => true;

    /// <summary>
    /// Maps a range (vm-memory's from_range): an <see cref="MmapRegion"/> for UNIX, so that everything can be done with it that can be done
    /// with any other mapping, and a <see cref="XenMmapRegion"/> for FOREIGN and GRANT.
    /// </summary>
    /// <param name="range">The range.</param>
    /// <param name="cancellation">Ends the wait for foreign frames that are paged out, which takes ten seconds at most.</param>
    /// <exception cref="GuestMemoryException">
    /// MapFixed; MmapFlags; InvalidFileOffset; InvalidOffsetLength; ZeroSize; OutOfMemory: more than 512 GiB; NotPageAligned and InvalidGuestRegion: the
    /// address; ValueNotSupported: the domain or the references; XenUnsupported: a kernel whose pages are not Xen's. FrameNotMapped,
    /// with the guest address; DomainNotFound; GrantNotMapped. For UNIX what <see cref="MmapRegionBuilder.Build"/> throws.
    /// </exception>
    public static VolatileMemory FromRange(MmapRange range, CancellationToken cancellation = default) => FromRange(range, XenCalls.Kernel, cancellation);

    internal static VolatileMemory FromRange(MmapRange range, XenCalls calls, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(range);
        var flags = range.Flags ?? MapFlags.NoReserve | MapFlags.Shared;
        MmapRegionBuilder.RefuseFixed(flags);
        if (!range.XenFlags.IsValid())
        {
            throw new GuestMemoryException(GuestMemoryError.MmapFlags,
                $"Invalid Xen mapping flags: 0x{(uint)range.XenFlags:x}. Valid are 0x0 (UNIX), 0x1 (FOREIGN), 0x2 (GRANT) and 0xa (GRANT with NO_ADVANCE_MAP).");
        }

        VolatileMemory memory = range.XenFlags.IsUnix() ? MapUnix(range, flags) : MapXen(range, flags, calls, cancellation);
        if (range.IsHugetlbfs is { } hugetlbfs) memory.SetHugetlbfs(hugetlbfs);
        if (range.DirtyTracking) memory.SetTracker(new AtomicBitmap(range.Size, HostPage.Size));
        return memory;
    }

    /// <summary>
    /// Maps runs of a domain's frames from frame 0 on as one memory. Where the domain has no memory it reads as zeros, and a write is an error.
    /// </summary>
    /// <param name="range">A FOREIGN range from address 0 on, to the end of the last run.</param>
    /// <param name="runs">What is there, in ascending order.</param>
    /// <param name="calls">The device's answers.</param>
    /// <param name="cancellation">Ends the wait for frames that are paged out.</param>
    internal static XenMmapRegion FromRuns(MmapRange range, FrameRun[] runs, XenCalls calls, CancellationToken cancellation = default)
    {
        Check(range);
        const MapFlags flags = MapFlags.NoReserve | MapFlags.Shared;
        var domain = (ushort)range.XenData;
        var device = FileOffset.Duplicate(range.File!, 0);
        SafeMapping? mapping = null;
        try
        {
            mapping = Mman.Map((nuint)range.Size, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, $"Mapping the memory of domain {domain}");
            foreach (var run in runs)
                ForeignFrames.MapOver(mapping.Address + (nint)(run.First * XenPage.Size), calls, device.File, domain, run.First, (int)run.Count, ProtectionOf(range), flags, cancellation);
            return new XenMmapRegion(range, flags, device, null, mapping, runs);
        }
        catch
        {
            mapping?.Dispose();
            device.File.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Whether two regions show a page of one domain that is the same (what vm-memory's fds_overlap is for). Upstream compares descriptors and
    /// offsets, and so takes any two regions of one device for such.
    /// </summary>
    public bool FdsOverlap(XenMmapRegion other)
    {
        ArgumentNullException.ThrowIfNull(other);
        if (_device.Identity != other._device.Identity || XenMmapData != other.XenMmapData) return false;
        var (mine, theirs) = (XenPage.Count(Size), XenPage.Count(other.Size));
        if (_grants is not null) return other._grants is not null && _grants.Overlaps(mine, other._grants, theirs);
        var (first, second) = (Address.Value / XenPage.Size, other.Address.Value / XenPage.Size);
        return other._grants is null && (first < second ? second - first < mine : first - second < theirs);
    }

    /// <summary>Unmaps the memory, as soon as no access is under way any more, and closes the device.</summary>
    /// <param name="force">Of no account: nothing else uses the memory.</param>
    public override void Release(bool force)
    {
        SetDisposed();
        _mapping?.Dispose();
        _device.File.Dispose();
        ReleaseLog();
    }

    /// <inheritdoc/>
    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = null;
        error = !Protection.Allows(access) ? Errno.EACCES : access != MemoryProtection.Read && !IsThere(offset, length) ? Errno.ENXIO : 0;
        if (error != 0) return 0;
        try
        {
            if (_mapping is not null)
            {
                var taken = false;
                _mapping.DangerousAddRef(ref taken);
                return _mapping.Address + (nint)offset;
            }

            // Of no bytes there is nothing to map.
            if (length == 0) return (nint)offset;
            var inPage = offset % XenPage.Size;
            var window = _grants!.TryMap(offset / XenPage.Size, inPage + length, access, Flags, out _, out error);
            state = window;
            return window is null ? 0 : window.Address + (nint)inPage;
        }
        catch (ObjectDisposedException exception)
        {
            throw RegionDisposed(exception);
        }
    }

    /// <inheritdoc/>
    protected override void Unpin(nint address, ulong length, object? state)
    {
        if (_mapping is not null) _mapping.DangerousRelease();
        else (state as SafeMapping)?.Dispose();
    }

    /// <inheritdoc/>
    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        var done = 0;
        do done += base.ReadCore(offset + (ulong)done, buffer.Slice(done, AtOnce(offset + (ulong)done, buffer.Length - done)), out error);
        while (error == 0 && done < buffer.Length);
        return done;
    }

    /// <inheritdoc/>
    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        var done = 0;
        do done += base.WriteCore(offset + (ulong)done, buffer.Slice(done, UpToHole(offset + (ulong)done, AtOnce(offset + (ulong)done, buffer.Length - done))), out error);
        while (error == 0 && done < buffer.Length);
        return done;
    }

    /// <inheritdoc/>
    protected override string WhyNot(MemoryProtection access, int error) => error == Errno.ENXIO
        ? $"domain {XenMmapData} has no memory there"
        : $"domain {XenMmapData} does not grant it to this domain, or not for {(access == MemoryProtection.Read ? "reading" : "writing")} ({Errno.Name(error)})";

    /// <summary>How many bytes are accessed by one mapping; the next begins with a page.</summary>
    private static int AtOnce(ulong offset, int length) => (int)Math.Min((ulong)length, Piece - (offset % XenPage.Size));

    /// <summary>The run that holds an offset, or the first one behind it.</summary>
    private FrameRun RunAt(ulong offset)
    {
        var frame = offset / XenPage.Size;
        var (low, high) = (0, _runs!.Length);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (_runs[middle].End <= frame) low = middle + 1;
            else high = middle;
        }

        return low < _runs.Length ? _runs[low] : default;
    }

    private bool IsThere(ulong offset, ulong length)
    {
        if (_runs is null || length == 0) return true;
        var run = RunAt(offset);
        return run.First * XenPage.Size <= offset && offset + length <= run.End * XenPage.Size;
    }

    /// <summary>How many of some bytes lie before a hole; all of them where they begin in one.</summary>
    private int UpToHole(ulong offset, int length)
    {
        if (_runs is null) return length;
        var run = RunAt(offset);
        return run.First * XenPage.Size <= offset ? (int)Math.Min((ulong)length, (run.End * XenPage.Size) - offset) : length;
    }

    private static MmapRegion MapUnix(MmapRange range, MapFlags flags)
    {
        var builder = new MmapRegionBuilder(range.Size).WithProtection(ProtectionOf(range)).WithFlags(flags);
        return (range.File is { } file ? builder.WithFile(file, range.FileOffset) : builder).Build();
    }

    private static XenMmapRegion MapXen(MmapRange range, MapFlags flags, XenCalls calls, CancellationToken cancellation)
    {
        if (range.File is not { } file) throw new GuestMemoryException(GuestMemoryError.InvalidFileOffset, "A foreign or grant mapping is one of a Xen device, whose file was not given.");
        if (range.FileOffset != 0) throw new GuestMemoryException(GuestMemoryError.InvalidOffsetLength, $"A Xen device is mapped from offset 0 on, not 0x{range.FileOffset:x}.") { Address = range.FileOffset };
        Check(range);
        var domain = (ushort)range.XenData;
        var device = FileOffset.Duplicate(file, 0);
        try
        {
            if (!range.XenFlags.IsGrant())
                return new XenMmapRegion(range, flags, device, null, ForeignFrames.Map(calls, device.File, domain, range.Address.Value / XenPage.Size, range.Size, ProtectionOf(range), flags, cancellation));
            var grants = new GrantedPages(calls, device.File, domain, (uint)(range.Address.Mask(~GrantMark) / XenPage.Size), range.GrantReferences?.ToArray());
            return range.XenFlags.MapsInAdvance()
                ? new XenMmapRegion(range, flags, device, grants, grants.TryMap(0, range.Size, ProtectionOf(range), flags, out var function, out var error) ?? throw NotGranted(range, grants, function, error))
                : new XenMmapRegion(range, flags, device, grants);
        }
        catch
        {
            device.File.Dispose();
            throw;
        }
    }

    private static void Check(MmapRange range)
    {
        if (range.XenData > ushort.MaxValue) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A domain's number is at most {ushort.MaxValue}, not {range.XenData}.");
        if (HostPage.Size != XenPage.Size)
            throw new GuestMemoryException(GuestMemoryError.XenUnsupported, $"Xen's pages have {XenPage.Size} bytes, those of this kernel {HostPage.Size}. Foreign and grant mappings need a kernel with pages of {XenPage.Size} bytes.");
        if (range.Size == 0 && range.XenFlags.MapsInAdvance()) throw MmapRegionBuilder.ZeroSize();
        var count = XenPage.Count(range.Size);
        if (count > XenPage.MaxCount) throw new GuestMemoryException(GuestMemoryError.OutOfMemory, $"A Xen mapping has at most {XenPage.MaxCount * XenPage.Size >> 30} GiB, not {range.Size} bytes. Make several.");
        if (range.GrantReferences is { } references)
        {
            if (!range.XenFlags.IsGrant()) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Frames of a domain have addresses, not grant references.");
            if ((ulong)references.Count != count) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{range.Size} bytes have {count} pages, but {references.Count} grant references were given.");
            return;
        }

        var address = range.XenFlags.IsGrant() ? range.Address.Mask(~GrantMark) : range.Address.Value;
        if (!HostPage.IsAligned(address, XenPage.Size))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The address {range.Address} is not a multiple of Xen's page size, {XenPage.Size} bytes.") { Address = range.Address.Value };
        GuestMemoryRegion.CheckFits(new GuestAddress(address), range.Size);
        if (range.XenFlags.IsGrant() && address / XenPage.Size + count > 1UL << 32)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Grant references have 32 bits; {range.Size} bytes at {range.Address} go past the last one.");
    }

    private static SyscallException NotGranted(MmapRange range, GrantedPages grants, string function, int error) =>
        new(function, error, $"Mapping {XenPage.Count(range.Size)} pages that domain {range.XenData} grants, from reference {grants.ReferenceOf(0)} on", GuestMemoryError.GrantNotMapped,
            error is Errno.EINVAL or Errno.EPERM or Errno.ENOENT ? "A reference is not granted to this domain, or only for reading, or there is no such domain." : null);

    private static MemoryProtection ProtectionOf(MmapRange range) => range.Protection ?? MemoryProtection.ReadWrite;
}
