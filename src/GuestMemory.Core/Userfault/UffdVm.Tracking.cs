using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>What the VM writes: every page comes write-protected, and its first write is another fault.</content>
internal sealed unsafe partial class UffdVm
{
    private ulong _protection;

    /// <summary>The pages that were written or given back. Whatever the VM had done before the call is among them.</summary>
    public IEnumerable<DirtyBitmap> DirtyBitmaps(int processId) => WriteScan.Of(_state, _byPage, _descriptor, processId, _gate.AwaitRead);

    private static bool IsWrite(ulong flags) => (flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_WRITE) != 0;

    /// <summary>Adds write protection to what the VMM registered.</summary>
    /// <exception cref="GuestMemoryException">UffdUnsupported.</exception>
    private void Protect()
    {
        var features = Userfaultfd.FeaturesOf(_uffd);
        _protection = Userfaultfd.UFFDIO_COPY_MODE_WP;
        var mode = Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_WP;
        var minor = (features & (Userfaultfd.UFFD_FEATURE_MINOR_SHMEM | Userfaultfd.UFFD_FEATURE_MINOR_HUGETLBFS)) == 0 ? 0 : Userfaultfd.UFFDIO_REGISTER_MODE_MINOR;
        foreach (var region in _byPage)
        {
            var error = Userfaultfd.TryRegister(_uffd, (nint)region.Base, (nuint)region.Size, mode | minor);
            // Private memory has no page cache to be mapped from.
            if (error == Errno.EINVAL && minor != 0) error = Userfaultfd.TryRegister(_uffd, (nint)region.Base, (nuint)region.Size, mode);
            if (error != 0)
                throw new SyscallException("ioctl(UFFDIO_REGISTER)", error, "Write-protecting the VM's memory to track its writes", GuestMemoryError.UffdUnsupported, "Start the handler without -TrackDirty.");
        }
    }

    /// <summary>How a page comes that is touched: who wants to write need not fault twice.</summary>
    private ulong ModeFor(UffdVmRegion region, ulong start, ulong flags)
    {
        if (_protection == 0 || !IsWrite(flags)) return _protection;
        _state.Written.Set(region.PageOf(start), region.PageSize / HostPage.Size);
        return 0;
    }

    private bool TryUnprotect(UffdVmRegion region, ulong start, PageScratch scratch)
    {
        // Noted before the write can happen.
        _state.Written.Set(region.PageOf(start), region.PageSize / HostPage.Size);
        switch (Userfaultfd.TryUnprotect(_uffd, start, region.PageSize))
        {
            case Errno.EAGAIN:
                ReadEvents(scratch);
                return _gone;
            case Errno.ESRCH:
                _gone = true;
                return true;
            case 0:
                _counters->WriteProtected++;
                return true;
            default:
                // Unmapped or unregistered since: whoever waits finds out.
                _ = Userfaultfd.TryWake(_uffd, start, region.PageSize);
                _counters->Failed++;
                return true;
        }
    }
}
