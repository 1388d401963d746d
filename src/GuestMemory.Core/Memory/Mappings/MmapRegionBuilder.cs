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
    /// Shared where neither is given.
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
        _offset = offset;
        return this;
    }

    /// <summary>Maps an open file from an offset; the handle stays the caller's.</summary>
    public MmapRegionBuilder WithFile(SafeFileHandle file, ulong offset = 0)
    {
        _file = file;
        _offset = offset;
        return this;
    }

    /// <summary>Backs the memory by a memfd of its own, sealed against every change of size.</summary>
    public MmapRegionBuilder WithMemfd()
    {
        _memfd = true;
        return this;
    }

    /// <summary>Uses huge pages of this many bytes, 2 MiB or 1 GiB for example; 0 for ordinary pages.</summary>
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
    /// Wraps memory that somebody else mapped and will unmap. The caller vouches for the pointer, the size and the lifetime;
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
    /// <exception cref="GuestMemoryException">MapFixed, InvalidPointer, ZeroSize, UnalignedOffset, UnalignedSize, MappingPastEof, HugePagesExhausted, HugePageSizeUnsupported, OutOfMemory.</exception>
    /// <exception cref="SyscallException">The kernel refused for another reason.</exception>
    public MmapRegion Build()
    {
        if (_pointer is { } pointer) return Wrap(pointer);
        if ((_flags.GetValueOrDefault() & MapFlags.Fixed) != 0)
            throw new GuestMemoryException(GuestMemoryError.MapFixed, "MAP_FIXED is refused: it would silently replace whatever is mapped at that address. Leave the flag out.");
        if (_hugePageSize != 0) CheckHugePageSize();
        if (_size > long.MaxValue) throw new GuestMemoryException(GuestMemoryError.OutOfMemory, $"A mapping of {_size} bytes is larger than any address space.");

        if (_memfd)
        {
            if (_size == 0) throw ZeroSize();
            using var memfd = Memfd.CreateSealed("guest_mem", (long)_size, Shift(_hugePageSize));
            return Map(memfd, "memfd:guest_mem", canFail: false, isFile: true);
        }

        if (_file is not null) return Map(_file, PathOf(_file), canFail: true, isFile: true);
        if (_path is null) return Map(null, null, canFail: false, isFile: false);
        using var opened = Open(_path);
        return Map(opened, _path, canFail: true, isFile: true);
    }

    private MmapRegion Map(System.Runtime.InteropServices.SafeHandle? file, string? path, bool canFail, bool isFile)
    {
        var hugetlbfs = file is null || _memfd ? 0 : FileStatus.HugetlbfsPageSize(file);
        var pageSize = hugetlbfs != 0 ? (ulong)hugetlbfs : _hugePageSize != 0 ? _hugePageSize : HostPage.Size;
        var flags = _flags ?? (isFile ? MapFlags.NoReserve | MapFlags.Shared : MapFlags.Anonymous | MapFlags.NoReserve | MapFlags.Private);
        // Without one of these mmap(2) maps nothing: what is not said is what is usual.
        if (!isFile) flags |= MapFlags.Anonymous;
        if ((flags & (MapFlags.Shared | MapFlags.Private)) == 0) flags |= isFile ? MapFlags.Shared : MapFlags.Private;
        if (pageSize != HostPage.Size)
        {
            if (_flags is null) flags &= ~MapFlags.NoReserve;
            if (!isFile) flags |= MapFlags.HugeTlb | (MapFlags)(Shift(pageSize) << Mman.MAP_HUGE_SHIFT);
            CheckWholePages(pageSize);
        }

        // What is wrong with the numbers themselves is left to the kernel to say.
        if (canFail && _size != 0 && HostPage.IsAligned(_offset, pageSize) && PastEnd(file!) is { } length)
        {
            throw new GuestMemoryException(GuestMemoryError.MappingPastEof,
                $"{path} is {length} bytes long, shorter than the mapping: offset {_offset} plus {_size} bytes. Give a smaller size or lengthen the file ('truncate -s').");
        }

        var what = path is null ? $"Mapping {_size} bytes of anonymous memory" : $"Mapping {_size} bytes of {path} from offset {_offset}";
        var mapping = TryMap(file, flags, out var error) ?? throw MapFailure(error, what, pageSize);
        // Direct access is for memory that no fault can fail on: ordinary anonymous pages and memfds that nobody can shrink.
        var guarded = canFail || pageSize != HostPage.Size || !_protection.Allows(MemoryProtection.ReadWrite);
        try
        {
            return new MmapRegion(guarded ? mapping : mapping.Share(), _size, pageSize, _protection, flags, path, file is null ? null : FileOffset.Duplicate(file, _offset),
                _hugetlbfs ?? (pageSize != HostPage.Size ? true : null), owned: true, guarded, canFail, Tracker());
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
        return new MmapRegion(new SafeMapping(pointer, (nuint)_size, owned: false), _size, HostPage.Size, _protection, flags, null,
            _file is null ? null : FileOffset.Duplicate(_file, _offset), _hugetlbfs, owned: false, guarded: true, canShrink: true, Tracker());
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
                $"The pool of {pageSize / 1024} kB pages is too small: {_size / pageSize} free ones are needed. Enlarge it: 'echo N > /sys/kernel/mm/hugepages/hugepages-{pageSize / 1024}kB/nr_hugepages'.");
        }

        return error == Errno.ENOMEM
            ? new SyscallException("mmap", error, what, GuestMemoryError.OutOfMemory, "Give a smaller size, or raise the limit ('ulimit -v', the cgroup's memory.max, vm.overcommit_memory).")
            : new SyscallException("mmap", error, what);
    }

    private static SyscallException ZeroSize() =>
        new("mmap", Errno.EINVAL, "Mapping 0 bytes", GuestMemoryError.ZeroSize, "Give a size of at least one byte, '256MiB' for example.");

    private void CheckHugePageSize()
    {
        if (_hugePageSize == HostPage.Size || Directory.Exists($"/sys/kernel/mm/hugepages/hugepages-{_hugePageSize / 1024}kB"))
        {
            CheckWholePages(_hugePageSize);
            return;
        }

        var offered = Directory.Exists("/sys/kernel/mm/hugepages")
            ? string.Join(", ", Directory.GetDirectories("/sys/kernel/mm/hugepages").Select(d => Path.GetFileName(d)["hugepages-".Length..]))
            : "none";
        throw new GuestMemoryException(GuestMemoryError.HugePageSizeUnsupported, $"This host has no huge pages of {_hugePageSize} bytes. It offers: {offered}.");
    }

    private void CheckWholePages(ulong pageSize)
    {
        if (!HostPage.IsAligned(_size, pageSize))
            throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"The size, {_size} bytes, is not a multiple of the page size, {pageSize} bytes.");
    }

    private static int Shift(ulong pageSize) => pageSize == 0 || pageSize == HostPage.Size ? 0 : System.Numerics.BitOperations.Log2(pageSize);

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
