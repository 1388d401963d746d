using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>
/// Has the kernel note each write. To begin, one of the process's threads is stopped for less than a millisecond, and creates a userfaultfd that this process takes over; from then
/// on the kernel notes writes (UFFD_FEATURE_WP_ASYNC) and reading them (PAGEMAP_SCAN) does not touch the process. Writes of other processes that share the memory do not count. Needs Linux 6.7.
/// </summary>
internal sealed class UserfaultDirtyTracker : ProcessDirtyTracker
{
    private const ulong Features = Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED | Userfaultfd.UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

    // Protecting 1 GiB takes some 25 ms, during which the process cannot map or unmap memory.
    private const ulong ProtectStep = 64 << 20;

    private readonly SafeDescriptor _userfaultfd;
    private readonly SafeFileHandle _pagemap;
    private readonly PageRegion[] _regions = new PageRegion[1024];

    private UserfaultDirtyTracker(TrackedRange range, SafeDescriptor userfaultfd, SafeFileHandle pagemap)
        : base(range) => (_userfaultfd, _pagemap) = (userfaultfd, pagemap);

    public override ProcessTrackingSource Source => ProcessTrackingSource.Userfault;

    public override bool IsExact => true;

    /// <exception cref="GuestMemoryException">ValueNotSupported: it is this process.</exception>
    public static void RequireAnother(int processId)
    {
        if (processId == Environment.ProcessId) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A process cannot stop itself: the memory of this process cannot be tracked from here.");
    }

    public static UserfaultDirtyTracker Begin(TrackedRange range)
    {
        RequireAnother(range.ProcessId);
        var error = Pagemap.TryProbe();
        if (error != 0) throw new SyscallException("ioctl(PAGEMAP_SCAN)", error, "Asking the kernel for written pages", GuestMemoryError.UffdUnsupported, "It needs Linux 6.7.");
        var userfaultfd = RemoteUserfaultfd.Create(range.ProcessId, range.Process, out var standstill);
        SafeFileHandle? pagemap = null;
        try
        {
            // Second: where the process runs another program by now, the userfaultfd tells.
            pagemap = ProcessFile.Open(range.ProcessId, "pagemap", static path => File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite));
            var tracker = new UserfaultDirtyTracker(range, userfaultfd, pagemap) { Standstill = standstill };
            tracker.Protect();
            return tracker;
        }
        catch
        {
            // With its last descriptor the kernel forgets a userfaultfd, and what it watched.
            userfaultfd.Dispose();
            pagemap?.Dispose();
            throw;
        }
    }

    private protected override void Find(bool clear, Action<ulong>? progress, CancellationToken cancellation)
    {
        for (var at = Address; at < Address + Size;)
        {
            ThrowIfUnwanted(cancellation);
            Array.Clear(_regions);
            var count = Pagemap.TryScanChanged(_pagemap, at, Address + Size, _regions, clear, out at);
            // Also where it failed: it may have cleared a part before.
            for (var i = 0; i < _regions.Length && _regions[i].end != 0; i++)
            {
                if (Pagemap.IsChanged(_regions[i])) Found.MarkDirty(_regions[i].start - Address, _regions[i].end - _regions[i].start);
            }

            progress?.Invoke(at - Address);
            if (count >= 0) continue;
            RequireRange();
            throw count == -Errno.EPERM ? Unmapped()
                : new SyscallException("ioctl(PAGEMAP_SCAN)", (int)-count, $"Asking what process {ProcessId} wrote", GuestMemoryError.UffdUnsupported);
        }

        ThrowIfUnwanted(cancellation);
        RequireRange();
    }

    private protected override void Release()
    {
        // Also where a child that the process started in the moment of the beginning has the descriptor, too.
        using (var lease = new DescriptorLease(_userfaultfd)) _ = Userfaultfd.TryUnregister(lease.Number, Address, Size);
        _userfaultfd.Dispose();
        _pagemap.Dispose();
    }

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
        // Registering says so of a process that has given its memory up, as one that ends does first.
        Errno.ENOMEM when ProcessFile.StatusOf(ProcessId, "status", "VmSize").Length == 0 => ProcessFile.NotFound(ProcessId),
        Errno.ENOENT => Unmapped(),
        Errno.EPERM => new SyscallException($"ioctl({request})", error, $"Tracking {this}", GuestMemoryError.UffdRegisterFailed, "The process may never write there: a part of it is a shared mapping of a file that was opened for reading."),
        Errno.EINVAL => new SyscallException($"ioctl({request})", error, $"Tracking {this}", GuestMemoryError.UffdRegisterFailed, "A part of it is no memory that the kernel tracks."),
        _ => new SyscallException($"ioctl({request})", error, $"Tracking {this}"),
    };

    private void RequireRange()
    {
        using var lease = new DescriptorLease(_userfaultfd);
        switch (Userfaultfd.TryProbeRange(lease.Number, Address, PageSize))
        {
            case Errno.ESRCH: throw Ended();
            case Errno.ENOENT: throw Unmapped();
        }
    }
}
