using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// Describes a mapping and makes it (vm-memory's MmapRegionBuilder). Unlike upstream's, the defaults give memory that can be
/// used: read and write, anonymous, private, no swap reserved.
/// </summary>
public sealed class MmapRegionBuilder
{
    private readonly ulong _size;
    private MemoryProtection _protection = MemoryProtection.ReadWrite;
    private MapFlags? _flags;
    private string? _path;
    private SafeFileHandle? _file;
    private ulong _offset;
    private bool _memfd;
    private ulong _hugePageSize;
    private bool? _hugetlbfs;
    private nint? _pointer;
    private bool _tracked;
    private IDirtyTracker? _tracker;

    /// <param name="size">The bytes to map. What lies between them and the end of their last page is never accessed.</param>
    public MmapRegionBuilder(ulong size) => _size = size;

    /// <summary>Sets the protection; read and write unless set.</summary>
    public MmapRegionBuilder WithProtection(MemoryProtection protection)
    {
        _protection = protection;
        return this;
    }

    /// <summary>
    /// Sets the MAP_ flags. Unless set: NoReserve and Private for anonymous memory, NoReserve and Shared for a file or memfd;
    /// huge pages are reserved, so that a pool that is too small is known at once. Anonymous is added without a file, Private or
    /// Shared where neither is given. HugeTlb asks for huge pages as <see cref="WithHugePages"/> does: of the size that Huge2MB or
    /// Huge1GB names, else of the kernel's default size.
    /// </summary>
    public MmapRegionBuilder WithFlags(MapFlags flags)
    {
        _flags = flags;
        return this;
    }

    /// <summary>Maps the file at a path, from an offset that is a multiple of the page size, in bytes.</summary>
    public MmapRegionBuilder WithFile(string path, ulong offset = 0)
    {
        _path = path;
        _file = null;
        _offset = offset;
        return this;
    }

    /// <summary>Maps an open file from an offset; the handle stays the caller's.</summary>
    public MmapRegionBuilder WithFile(SafeFileHandle file, ulong offset = 0)
    {
        _file = file;
        _path = null;
        _offset = offset;
        return this;
    }

    /// <summary>Backs the memory by a memfd of its own, sealed against every change of size.</summary>
    public MmapRegionBuilder WithMemfd()
    {
        _memfd = true;
        return this;
    }

    /// <summary>
    /// Uses huge pages of this many bytes, 2 MiB or 1 GiB for example; 0 for what the flags or the file say. A file has the pages of its
    /// file system: only one on hugetlbfs has huge ones.
    /// </summary>
    public MmapRegionBuilder WithHugePages(ulong pageSize)
    {
        _hugePageSize = pageSize;
        return this;
    }

    /// <summary>Records whether the memory lies on hugetlbfs; changes nothing else.</summary>
    public MmapRegionBuilder WithHugetlbfs(bool hugetlbfs)
    {
        _hugetlbfs = hugetlbfs;
        return this;
    }

    /// <summary>
    /// Wraps memory that the caller mapped and will unmap. The caller vouches for the pointer, the size and the lifetime;
    /// only the alignment is checked.
    /// </summary>
    public MmapRegionBuilder WithRawPointer(nint pointer)
    {
        _pointer = pointer;
        return this;
    }

    /// <summary>Gives the region a dirty bitmap, one bit a host page, which every write through this library marks.</summary>
    public MmapRegionBuilder WithDirtyTracking(bool enabled = true)
    {
        _tracked = enabled;
        return this;
    }

    /// <summary>Has writes marked in a tracker of the caller's (vm-memory's new_with_bitmap); its offset 0 is the region's first byte.</summary>
    public MmapRegionBuilder WithTracker(IDirtyTracker tracker)
    {
        _tracker = tracker;
        return this;
    }

    /// <summary>Makes the mapping.</summary>
    /// <exception cref="GuestMemoryException">
    /// MapFixed, InvalidPointer, ZeroSize, UnalignedOffset, UnalignedSize, MappingPastEof, HugePagesExhausted, HugePageSizeUnsupported, OutOfMemory,
    /// NotAFile. ValueNotSupported: two sources of memory, or flags that contradict the page size.
    /// </exception>
    /// <exception cref="SyscallException">The kernel refused for another reason.</exception>
    public MmapRegion Build()
    {
        if (_memfd && (_path is not null || _file is not null || _pointer is not null))
            throw Contradiction("A memfd is memory of its own: it cannot be combined with a file or with memory that is mapped already.");
        if (_pointer is { } pointer) return Wrap(pointer);
        RefuseFixed(_flags.GetValueOrDefault());
        var pageSize = AskedPageSize();
        if (_size > long.MaxValue) throw new GuestMemoryException(GuestMemoryError.OutOfMemory, $"A mapping of {_size} bytes is larger than any address space.");

        if (_memfd)
        {
            if (_size == 0) throw ZeroSize();
            using var memfd = Memfd.CreateSealed("guest_mem", (long)_size, pageSize == HostPage.Size ? 0 : Shift(pageSize));
            return Map(memfd, "memfd:guest_mem", canShrink: false, pageSize);
        }

        if (_file is not null) return MapFile(_file, PathOf(_file), pageSize);
        if (_path is null) return Map(null, null, canShrink: false, pageSize);
        using var opened = Open(_path);
        return MapFile(opened, _path, pageSize);
    }

    private MmapRegion MapFile(SafeFileHandle file, string path, ulong asked)
    {
        var pageSize = FileStatus.HugetlbfsPageSize(file) is var huge and not 0 ? (ulong)huge : HostPage.Size;
        if (asked != HostPage.Size && asked != pageSize)
        {
            throw new GuestMemoryException(GuestMemoryError.HugePageSizeUnsupported, pageSize == HostPage.Size
                ? $"{path} has no huge pages: only files on hugetlbfs do. Put the file on a mount of hugetlbfs, or leave the page size out."
                : $"{path} lies on a hugetlbfs of {pageSize} byte pages, not of {asked}. Leave the page size out.");
        }

        // Before its length is compared: a seal that comes later would not hold what was read. The huge pages of a memfd can go all the same.
        var canShrink = pageSize != HostPage.Size || (Memfd.Seals(file) & Memfd.F_SEAL_SHRINK) == 0;
        // What is wrong with the numbers themselves is left to the kernel to say.
        if (_size != 0 && HostPage.IsAligned(_offset, pageSize) && PastEnd(file) is { } length)
        {
            throw new GuestMemoryException(GuestMemoryError.MappingPastEof,
                $"{path} is {length} bytes long, shorter than the mapping: offset {_offset} plus {_size} bytes. Give a smaller size or lengthen the file ('truncate -s').");
        }

        return Map(file, path, canShrink, pageSize);
    }

    private MmapRegion Map(System.Runtime.InteropServices.SafeHandle? file, string? path, bool canShrink, ulong pageSize)
    {
        var flags = _flags ?? (file is not null ? MapFlags.NoReserve | MapFlags.Shared : MapFlags.Anonymous | MapFlags.NoReserve | MapFlags.Private);
        // Without one of these mmap(2) maps nothing: what is not said is what is usual.
        if (file is null) flags |= MapFlags.Anonymous;
        if ((flags & (MapFlags.Shared | MapFlags.Private)) == 0) flags |= file is not null ? MapFlags.Shared : MapFlags.Private;
        if (pageSize != HostPage.Size)
        {
            if (_flags is null) flags &= ~MapFlags.NoReserve;
            if (file is null) flags |= MapFlags.HugeTlb | (MapFlags)((uint)Shift(pageSize) << Mman.MAP_HUGE_SHIFT);
            // The kernel maps whole huge pages, and unmaps nothing else.
            if (!HostPage.IsAligned(_size, pageSize))
                throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"The size, {_size} bytes, is not a multiple of the page size, {pageSize} bytes.");
        }

        var what = path is null ? $"Mapping {_size} bytes of anonymous memory" : $"Mapping {_size} bytes of {path} from offset {_offset}";
        var mapping = TryMap(file, flags, out var error) ?? throw MapFailure(error, what, pageSize);
        // Direct access is for memory that no fault can fail on: ordinary anonymous pages, and memfds that are sealed against shrinking, whoever
        // made them: a hole that another process punches into one reads as zeros.
        var guarded = canShrink || pageSize != HostPage.Size || !_protection.Allows(MemoryProtection.ReadWrite);
        try
        {
            return new MmapRegion(guarded ? mapping : mapping.ReserveAddresses(), _size, pageSize, _protection, flags, path, file is null ? null : FileOffset.Duplicate(file, _offset),
                _hugetlbfs ?? (pageSize != HostPage.Size ? true : null), owned: true, guarded, canShrink, Tracker());
        }
        catch
        {
            mapping.Dispose();
            throw;
        }
    }

    private SafeMapping? TryMap(System.Runtime.InteropServices.SafeHandle? file, MapFlags flags, out int error)
    {
        var mapping = Once(out error);
        if (error != Errno.ENOMEM) return mapping;
        // Addresses of regions that were released, but not found so by the collector yet.
        GC.Collect();
        GC.WaitForPendingFinalizers();
        return Once(out error);

        SafeMapping? Once(out int error)
        {
            if (file is null) return Mman.TryMap((nuint)_size, (int)_protection, (int)flags, -1, (long)_offset, out error);
            using var lease = new DescriptorLease(file);
            return Mman.TryMap((nuint)_size, (int)_protection, (int)flags, lease.Number, (long)_offset, out error);
        }
    }

    private MmapRegion Wrap(nint pointer)
    {
        if (!HostPage.IsAligned((ulong)pointer, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.InvalidPointer, $"The pointer 0x{pointer:x} is not a multiple of the page size, {HostPage.Size} bytes.");
        var flags = _flags ?? MapFlags.Anonymous | MapFlags.NoReserve | MapFlags.Private;
        using var opened = _path is null ? null : Open(_path);
        return new MmapRegion(new SafeMapping(pointer, (nuint)_size, owned: false), _size, AskedPageSize(), _protection, flags, null,
            (opened ?? _file) is { } file ? FileOffset.Duplicate(file, _offset) : null, _hugetlbfs, owned: false, guarded: true, canShrink: true, Tracker());
    }

    private IDirtyTracker? Tracker() => _tracker ?? (_tracked ? new AtomicBitmap(_size, HostPage.Size) : null);

    private GuestMemoryException MapFailure(int error, string what, ulong pageSize)
    {
        if (error == Errno.EINVAL && _size == 0) return ZeroSize();
        if (error is Errno.EINVAL or Errno.EOVERFLOW && !HostPage.IsAligned(_offset, pageSize))
            return new SyscallException("mmap", error, what, GuestMemoryError.UnalignedOffset, $"The file offset must be a multiple of the page size, {pageSize} bytes.");
        if (error == Errno.ENOMEM && pageSize != HostPage.Size)
        {
            return new SyscallException("mmap", error, what, GuestMemoryError.HugePagesExhausted,
                $"The pool of {pageSize / 1024} kB pages is too small: {_size / pageSize} free ones are needed. Enlarge it: '{HugePages.EnlargeCommand(pageSize)}'.");
        }

        return error == Errno.ENOMEM
            ? new SyscallException("mmap", error, what, GuestMemoryError.OutOfMemory, "Give a smaller size, or raise the limit ('ulimit -v', the cgroup's memory.max, vm.overcommit_memory).")
            : new SyscallException("mmap", error, what);
    }

    /// <summary>Refuses MAP_FIXED.</summary>
    /// <exception cref="GuestMemoryException">MapFixed.</exception>
    internal static void RefuseFixed(MapFlags flags)
    {
        if ((flags & MapFlags.Fixed) != 0)
            throw new GuestMemoryException(GuestMemoryError.MapFixed, "MAP_FIXED is refused: it would silently replace whatever is mapped at that address. Leave the flag out.");
    }

    internal static SyscallException ZeroSize() =>
        new("mmap", Errno.EINVAL, "Mapping 0 bytes", GuestMemoryError.ZeroSize, "Give a size of at least one byte, '256MiB' for example.");

    /// <summary>The size of the pages that <see cref="WithHugePages"/> or the flags ask for, in bytes; HostPage.Size where neither does.</summary>
    private ulong AskedPageSize()
    {
        var flags = _flags.GetValueOrDefault();
        var shift = (int)((uint)flags >> Mman.MAP_HUGE_SHIFT);
        if ((flags & MapFlags.HugeTlb) == 0)
        {
            if (shift != 0 && _hugePageSize != 1UL << shift) throw Contradiction("The flags name a size of huge pages, which without HugeTlb means nothing. Add HugeTlb, or leave the size out.");
            return Offered(_hugePageSize == 0 ? HostPage.Size : _hugePageSize);
        }

        var inFlags = shift == 0 ? HugePages.DefaultPageSize : 1UL << shift;
        if (_hugePageSize == 0) return Offered(inFlags);
        if (_hugePageSize == HostPage.Size || (shift != 0 && _hugePageSize != inFlags))
            throw Contradiction($"The flags ask for huge pages{(shift == 0 ? "" : $" of {inFlags} bytes")}, the page size is {_hugePageSize} bytes.");
        return Offered(_hugePageSize);
    }

    private static ulong Offered(ulong pageSize)
    {
        if (pageSize == HostPage.Size) return pageSize;
        var pools = HugePages.Pools();
        if (pools.Any(pool => pool.PageSize == pageSize)) return pageSize;
        throw new GuestMemoryException(GuestMemoryError.HugePageSizeUnsupported,
            $"This host has no huge pages of {pageSize} bytes. It offers: {(pools.Count == 0 ? "none" : string.Join(", ", pools.Select(pool => $"{pool.PageSize / 1024}kB")))}.");
    }

    private static GuestMemoryException Contradiction(string message) => new(GuestMemoryError.ValueNotSupported, message);

    private static int Shift(ulong pageSize) => System.Numerics.BitOperations.Log2(pageSize);

    private SafeFileHandle Open(string path)
    {
        if (Directory.Exists(path)) throw new GuestMemoryException(GuestMemoryError.NotAFile, $"{path} is a directory; a file is needed.");
        var shared = ((_flags ?? MapFlags.Shared) & MapFlags.Shared) != 0;
        var write = shared && _protection.HasWrite();
        return File.OpenHandle(path, FileMode.Open, write ? FileAccess.ReadWrite : FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
    }

    /// <summary>The length of a regular file that is too short for the mapping, else null. Devices have no length to compare with.</summary>
    private ulong? PastEnd(System.Runtime.InteropServices.SafeHandle file)
    {
        var status = FileStatus.Get(file);
        return (status.stx_mode & FileStatus.S_IFMT) == FileStatus.S_IFREG && (_offset > status.stx_size || _size > status.stx_size - _offset) ? status.stx_size : null;
    }

    private static string PathOf(SafeFileHandle file)
    {
        using var lease = new DescriptorLease(file);
        return Descriptor.PathOf(lease.Number);
    }
}
