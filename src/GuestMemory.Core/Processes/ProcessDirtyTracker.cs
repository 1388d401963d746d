using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>
/// Owns the tracking of writes to a range of another process's memory, until it is disposed. The process need not cooperate: to begin, one of
/// its threads is stopped for less than a millisecond, and creates a userfaultfd that this process takes over; from then on the kernel notes writes (UFFD_FEATURE_WP_ASYNC)
/// and reading them (PAGEMAP_SCAN) does not touch the process. Where this process ends, the kernel ends the tracking, and the other goes on.
/// </summary>
/// <remarks>
/// A page counts as dirty where the process wrote it, or the kernel did on its behalf, or where it was given back (MADV_DONTNEED, a punched hole). Writes of other processes that
/// share the memory do not count. Needs Linux 6.7. Any number of threads may use one object.
/// </remarks>
public sealed class ProcessDirtyTracker : IDisposable
{
    private const ulong Features = Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED | Userfaultfd.UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

    // Protecting 1 GiB takes some 25 ms, during which the process cannot map or unmap memory.
    private const ulong ProtectStep = 64 << 20;

    private readonly Lock _lock = new();
    private readonly SafeDescriptor _process, _userfaultfd;
    private readonly SafeFileHandle _pagemap;
    private readonly AtomicBitmap _found;
    private readonly PageRegion[] _regions = new PageRegion[1024];
    private bool _isDisposed;

    private ProcessDirtyTracker(int processId, ulong address, ulong size, ulong pageSize, SafeDescriptor process, SafeDescriptor userfaultfd, SafeFileHandle pagemap)
    {
        (ProcessId, Address, Size, PageSize) = (processId, address, size, pageSize);
        (_process, _userfaultfd, _pagemap) = (process, userfaultfd, pagemap);
        ProcessName = ProcessFile.Read(processId, "comm", static lines => lines.FirstOrDefault() ?? "");
        _found = new AtomicBitmap(size, pageSize);
    }

    private delegate long PageScan(System.Runtime.InteropServices.SafeHandle pagemap, ulong start, ulong end, Span<PageRegion> regions, bool protect, out ulong next);

    /// <summary>The process whose memory is tracked.</summary>
    public int ProcessId { get; }

    /// <summary>The process's name, at most 15 characters.</summary>
    public string ProcessName { get; }

    /// <summary>The first address of the range, in the process.</summary>
    public ulong Address { get; }

    /// <summary>The length of the range in bytes.</summary>
    public ulong Size { get; }

    /// <summary>The bytes that a page of the bitmap stands for: the page size of the mapping, that of huge pages in hugetlb memory. Transparent huge pages are split as they are written.</summary>
    public ulong PageSize { get; }

    /// <summary>How long a thread of the process stood still when the tracking began, at most.</summary>
    public TimeSpan Standstill { get; private init; }

    /// <summary>Whether writes are noted.</summary>
    public ProcessTrackingState State
    {
        get
        {
            lock (_lock) return _isDisposed ? ProcessTrackingState.Stopped : Pidfd.HasEnded(_process) ? ProcessTrackingState.Ended : ProcessTrackingState.Tracking;
        }
    }

    /// <summary>What is tracked, for messages: "process 4711 (qemu-system-x86), 0x7f0000000000 to 0x7f003fffffff".</summary>
    public override string ToString() => $"process {ProcessId} ({ProcessName}), 0x{Address:x} to 0x{Address + (Size - 1):x}";

    /// <summary>Begins to track a range; every page of it is clean then. Where it fails, nothing of the process has changed.</summary>
    /// <param name="processId">The process; not this one.</param>
    /// <param name="address">The first address, a multiple of the mapping's page size.</param>
    /// <param name="size">The length in bytes, a multiple of the same. All of it must be mapped, in one page size.</param>
    /// <exception cref="GuestMemoryException">
    /// ProcessNotFound; ProcessDenied: this user may not trace it, or may not suspend its seccomp filter; ProcessTraced: a debugger does; ProcessUnsupported: a 32-bit program,
    /// a thread of the kernel, or one that answers its system calls itself; WaitTimeout: none of its threads can be stopped; RangeNotMapped; RangeInUse: another userfaultfd
    /// watches a part of it; UffdRegisterFailed: memory that the process may never write, or that is no memory (a device); UffdUnsupported: a kernel before 6.7; ZeroSize, NotPageAligned,
    /// UnalignedSize, ValueNotSupported: this process, or mappings of several page sizes.
    /// </exception>
    public static ProcessDirtyTracker Start(int processId, ulong address, ulong size)
    {
        if (processId == Environment.ProcessId) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A process cannot stop itself: the memory of this process cannot be tracked from here.");
        if (size == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A range of no bytes cannot be tracked.");
        var process = Pidfd.TryOpen(processId, out var error);
        if (process is null)
            throw error is Errno.ESRCH or Errno.EINVAL ? ProcessFile.NotFound(processId) : new SyscallException("pidfd_open", error, $"Opening process {processId}");
        SafeDescriptor? userfaultfd = null;
        SafeFileHandle? pagemap = null;
        try
        {
            if (Pidfd.HasEnded(process)) throw ProcessFile.NotFound(processId);
            var pageSize = CheckRange(processId, address, size);
            error = Pagemap.TryProbe();
            if (error != 0) throw new SyscallException("ioctl(PAGEMAP_SCAN)", error, "Asking the kernel for written pages", GuestMemoryError.UffdUnsupported, "It needs Linux 6.7.");
            userfaultfd = RemoteUserfaultfd.Create(processId, process, out var standstill);
            // Second: where the process runs another program by now, the userfaultfd tells.
            pagemap = ProcessFile.Open(processId, "pagemap", static path => File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite));
            var tracker = new ProcessDirtyTracker(processId, address, size, pageSize, process, userfaultfd, pagemap) { Standstill = standstill };
            tracker.Protect();
            return tracker;
        }
        catch (Exception exception)
        {
            // With its last descriptor the kernel forgets a userfaultfd, and what it watched.
            userfaultfd?.Dispose();
            pagemap?.Dispose();
            var hasEnded = Pidfd.HasEnded(process);
            process.Dispose();
            // Whatever failed, it did because of that.
            if (hasEnded && exception is GuestMemoryException) throw ProcessFile.NotFound(processId, exception);
            throw;
        }
    }

    /// <summary>The bytes from an address to the end of the mapping that contains it.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="address">The address.</param>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied, RangeNotMapped.</exception>
    public static ulong SizeToEnd(int processId, ulong address)
    {
        var mapping = ProcessMapping.GetAll(processId).FirstOrDefault(mapping => mapping.Address <= address && address < mapping.End);
        return mapping is null ? throw Missing(processId, address) : mapping.End - address;
    }

    /// <summary>
    /// The pages that were written or given back since the tracking began, or since they were last cleared.
    /// </summary>
    /// <param name="clear">Whether they are clean from then on. Each page is read and cleared in one step: no write is lost.</param>
    /// <exception cref="GuestMemoryException">
    /// DirtyTrackingOff: the tracking was stopped; ProcessEnded: the process ended, or runs another program; RangeNotMapped: the process unmapped the begin of the range,
    /// or mapped other memory in it. (Pages that it unmapped elsewhere are not dirty.)
    /// </exception>
    public DirtyBitmap GetDirtyBitmap(bool clear = false)
    {
        lock (_lock)
        {
            if (_isDisposed) throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"The tracking of {this} was stopped.");
            // What was found stays until it is told, also where a call fails half way.
            Scan(Pagemap.TryScanWritten, clear);
            Scan(Pagemap.TryScanAbsent, clear);
            RequireRange();
            return new DirtyBitmap(Address, Size, PageSize, clear ? _found.GetAndReset() : _found.Snapshot(), $"process {ProcessId}");
        }
    }

    /// <summary>Ends the tracking; the process goes on and its writes cost nothing any more.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (_isDisposed) return;
            _isDisposed = true;
            // Also where a child that the process started in the moment of the beginning has the descriptor, too.
            using (var lease = new DescriptorLease(_userfaultfd)) _ = Userfaultfd.TryUnregister(lease.Number, Address, Size);
            _userfaultfd.Dispose();
            _pagemap.Dispose();
            _process.Dispose();
        }
    }

    /// <summary>The page size of the range.</summary>
    private static ulong CheckRange(int processId, ulong address, ulong size)
    {
        if (!HostPage.IsAligned(address, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The address 0x{address:x} is not a multiple of the page size, 0x{HostPage.Size:x}.") { Address = address };
        var end = unchecked(address + size);
        var next = address;
        var hasFiles = false;
        foreach (var mapping in ProcessMapping.GetAll(processId).Where(mapping => mapping.End > address && (end <= address || mapping.Address < end)))
        {
            if (mapping.Address > next) break;
            next = mapping.End;
            hasFiles |= mapping.Inode != 0;
        }

        if (end <= address || next < end)
        {
            throw next == address ? Missing(processId, address)
                : new GuestMemoryException(GuestMemoryError.RangeNotMapped, $"Process {processId} has no memory at 0x{next:x}, inside the 0x{size:x} bytes at 0x{address:x}.") { Address = next };
        }

        // Huge pages of hugetlb always have a file, be it a hidden one.
        var hasDevice = false;
        var sizes = hasFiles ? ProcessMapping.PageSizesOf(processId, address, end, out hasDevice) : new HashSet<ulong> { HostPage.Size };
        // The kernel would take it, and note nothing.
        if (hasDevice) throw new GuestMemoryException(GuestMemoryError.UffdRegisterFailed, $"A part of the 0x{size:x} bytes at 0x{address:x} of process {processId} is memory of a device; its writes are not noted.") { Address = address };
        if (sizes.Count != 1)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The 0x{size:x} bytes at 0x{address:x} of process {processId} are mappings of several page sizes; each is tracked by itself.") { Address = address };
        var pageSize = sizes.First();
        if (!HostPage.IsAligned(address, pageSize))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The address 0x{address:x} is not a multiple of the mapping's page size, 0x{pageSize:x}.") { Address = address };
        if (!HostPage.IsAligned(size, pageSize))
            throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"The size 0x{size:x} is not a multiple of the mapping's page size, 0x{pageSize:x}.");
        return pageSize;
    }

    private static GuestMemoryException Missing(int processId, ulong address) =>
        new(GuestMemoryError.RangeNotMapped, $"Process {processId} has no memory at 0x{address:x}.") { Address = address };

    private void Protect()
    {
        using var lease = new DescriptorLease(_userfaultfd);
        Userfaultfd.Enable(lease.Number, Features);
        var error = Userfaultfd.TryRegister(lease.Number, (nint)Address, (nuint)Size, Userfaultfd.UFFDIO_REGISTER_MODE_WP);
        if (error != 0) throw Refused("UFFDIO_REGISTER", error);
        for (ulong done = 0; done < Size; done += ProtectStep)
        {
            while ((error = Userfaultfd.TryProtect(lease.Number, Address + done, Math.Min(ProtectStep, Size - done))) == Errno.EAGAIN) Thread.Yield();
            if (error != 0) throw Refused("UFFDIO_WRITEPROTECT", error);
        }
    }

    private GuestMemoryException Refused(string request, int error) => error switch
    {
        Errno.EBUSY => new SyscallException($"ioctl({request})", error, $"Tracking {this}", GuestMemoryError.RangeInUse, "Another userfaultfd watches a part of it: one of the process's own, of a page-fault handler, or of another tracking."),
        Errno.ESRCH => ProcessFile.NotFound(ProcessId),
        Errno.ENOENT => Unmapped(),
        Errno.EPERM => new SyscallException($"ioctl({request})", error, $"Tracking {this}", GuestMemoryError.UffdRegisterFailed, "The process may never write there: a part of it is a shared mapping of a file that was opened for reading."),
        Errno.EINVAL => new SyscallException($"ioctl({request})", error, $"Tracking {this}", GuestMemoryError.UffdRegisterFailed, "A part of it is no memory that the kernel tracks."),
        _ => new SyscallException($"ioctl({request})", error, $"Tracking {this}"),
    };

    private void Scan(PageScan scan, bool protect)
    {
        for (var at = Address; at < Address + Size;)
        {
            Array.Clear(_regions);
            var count = scan(_pagemap, at, Address + Size, _regions, protect, out at);
            // Also where it failed: it may have cleared a part before.
            for (var i = 0; i < _regions.Length && _regions[i].end != 0; i++) _found.MarkDirty(_regions[i].start - Address, _regions[i].end - _regions[i].start);
            if (count >= 0) continue;
            RequireRange();
            throw count == -Errno.EPERM ? Unmapped()
                : new SyscallException("ioctl(PAGEMAP_SCAN)", (int)-count, $"Asking what process {ProcessId} wrote", GuestMemoryError.UffdUnsupported);
        }
    }

    private void RequireRange()
    {
        using var lease = new DescriptorLease(_userfaultfd);
        switch (Userfaultfd.TryProbeRange(lease.Number, Address, PageSize))
        {
            case Errno.ESRCH: throw new GuestMemoryException(GuestMemoryError.ProcessEnded, $"Process {ProcessId} ({ProcessName}) has ended, or runs another program.");
            case Errno.ENOENT: throw Unmapped();
        }
    }

    private GuestMemoryException Unmapped() => new(GuestMemoryError.RangeNotMapped, $"Process {ProcessId} unmapped the 0x{Size:x} bytes at 0x{Address:x}, or mapped other memory there; what it wrote there is not known.") { Address = Address };
}
