using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>What the VM writes: every page comes write-protected, and its first write is another fault.</content>
internal sealed unsafe partial class UffdVm
{
    private ulong _protection;
    private bool _isOpening;

    /// <summary>The pages that were written or given back.</summary>
    public WriteTracker Writes(int processId) => new(_state, _mappings, _descriptor, processId);

    private ulong Features => _features ?? Userfaultfd.FeaturesOf(_uffd);

    private static bool IsWrite(ulong flags) => (flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_WRITE) != 0;

    /// <summary>Adds write protection to what the VMM registered.</summary>
    /// <exception cref="GuestMemoryException">UffdUnsupported.</exception>
    private void Protect()
    {
        var features = Features;
        _protection = Userfaultfd.UFFDIO_COPY_MODE_WP;
        var mode = Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_WP;
        var minor = (features & (Userfaultfd.UFFD_FEATURE_MINOR_SHMEM | Userfaultfd.UFFD_FEATURE_MINOR_HUGETLBFS)) == 0 ? 0 : Userfaultfd.UFFDIO_REGISTER_MODE_MINOR;
        foreach (var region in _regions)
        {
            var error = Userfaultfd.TryRegister(_uffd, (nint)region.Base, (nuint)region.Size, mode | minor);
            // Private memory has no page cache to be mapped from.
            if (error == Errno.EINVAL && minor != 0) error = Userfaultfd.TryRegister(_uffd, (nint)region.Base, (nuint)region.Size, mode);
            if (error != 0)
                throw new SyscallException("ioctl(UFFDIO_REGISTER)", error, "Write-protecting the VM's memory to track its writes", GuestMemoryError.UffdUnsupported, "Start the handler without TrackDirty.");
        }

        if (_state.IsTracked) return;
        // Pages that came before writes were tracked can be written without a fault.
        _state.Filled.CopyTo(_state.Written);
        _state.IsTracked = true;
    }

    /// <summary>
    /// Whether the VMM has the kernel note what the VM writes (WP_ASYNC, as e2b's fork of Firecracker does). Pages come write-protected
    /// then, since the kernel takes every other page for a written one. With synchronous protection the VMM protects pages itself.
    /// </summary>
    private bool IsTrackedByVmm() => (Features & Userfaultfd.UFFD_FEATURE_WP_ASYNC) != 0
        && Array.TrueForAll(_byPage, region => Userfaultfd.TryProbeRange(_uffd, region.Base, region.PageSize, Userfaultfd.UFFDIO_COPY_MODE_WP) != Errno.EINVAL);

    /// <summary>How a page comes that is touched: who wants to write need not fault twice.</summary>
    private ulong ModeFor(UffdVmRegion region, ulong start, ulong flags)
    {
        if (_protection == 0 || !IsWrite(flags)) return _protection;
        // Its write is another fault, which copies it first.
        if (_live?.Wants(region.PageOf(start), region.Unit / HostPage.Size) == true) return _protection;
        OpenPages(region, start);
        return 0;
    }

    /// <summary>Notes a page before it can be written.</summary>
    private void OpenPages(UffdVmRegion region, ulong start)
    {
        _isOpening = true;
        _state.BeginOpening(region.PageOf(start), region.Unit / HostPage.Size);
        _live?.BeforeOpening(region.PageOf(start), region.Unit / HostPage.Size);
    }

    /// <summary>A fault was answered, or is to be tried again.</summary>
    private void EndOpening()
    {
        if (!_isOpening) return;
        _isOpening = false;
        _state.EndOpening();
    }

    private void MarkRemoving(ulong page, ulong count)
    {
        // In this order: who takes the mark looks whether the page is gone already.
        _state.Removing.Set(page, count);
        _state.Written.Set(page, count);
    }

    /// <summary>What a process that is gone was about to open may be writable, and whoever waits for what it read need not any more.</summary>
    private void RecoverMarks()
    {
        var (page, count) = _state.Opening;
        _state.Written.Set(page, count);
        _state.EndOpening();
        _state.Reads.Recover();
    }

    private bool TryUnprotect(UffdVmRegion region, ulong start, ref UffdFault fault, PageScratch scratch)
    {
        OpenPages(region, start);
        for (var tries = 0; ;)
        {
            switch (Userfaultfd.TryUnprotect(_uffd, start, region.Unit))
            {
                case Errno.EAGAIN:
                    if (!TryAgain(ref fault, ref tries, scratch)) return false;
                    if (_gone) return true;
                    break;
                case Errno.EINVAL when region.TryWiden():
                    return TryUnprotect(region, fault.Address & ~(region.Unit - 1), ref fault, scratch);
                case Errno.ESRCH:
                    _gone = true;
                    return true;
                case 0:
                    _counters->WriteProtected++;
                    return true;
                default:
                    // Unmapped or unregistered since: a thread that waits for it finds out.
                    _ = Userfaultfd.TryWake(_uffd, start, region.Unit);
                    _counters->Failed++;
                    return true;
            }
        }
    }
}
