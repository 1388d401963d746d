using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>Handlers and VMs that use the memory.</content>
public sealed partial class MmapRegion
{
    /// <summary>
    /// Has a handler provide the pages of regions from now on: all, or none. On return every access to them is guarded, and none is under
    /// way that began before: what it would touch next may be missing by then.
    /// </summary>
    /// <param name="regions">The regions.</param>
    /// <param name="provider">The handler.</param>
    /// <param name="cancellation">Ends the wait for accesses that are under way.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; RegionInUse: another handler serves it, or a span or reference over it is in use.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled; everything is as before.</exception>
    internal static void HandOver(IReadOnlyList<MmapRegion> regions, IRegionHolder provider, CancellationToken cancellation)
    {
        var held = 0;
        try
        {
            for (; held < regions.Count; held++) regions[held].AddHolder(provider);
            foreach (var region in regions)
            {
                if (region.IsLeased) throw new GuestMemoryException(GuestMemoryError.RegionInUse, "The region is in use by a span or a reference over its memory. Dispose of that lease first.");
                region.WaitForCopies(cancellation);
            }

            // Short accesses are not counted. They are over when each thread has gone on for a while.
            if (regions.Any(static region => !region._alwaysGuarded)) ThreadProgress.WaitForOthers(cancellation);
        }
        catch
        {
            while (held > 0) regions[--held].RemoveHolder(provider);
            throw;
        }
    }

    /// <summary>Who provides its pages, alive or not; null where nobody does.</summary>
    private IRegionHolder? Provider
    {
        get
        {
            lock (_lock) return _holders.Provider;
        }
    }

    /// <summary>Registers a holder. While one provides pages every access that begins is guarded, and there is no second such one.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed; RegionInUse.</exception>
    internal void AddHolder(IRegionHolder holder)
    {
        lock (_lock)
        {
            if (IsDisposed) throw RegionDisposed();
            _holders.Add(holder);
            if (holder.ProvidesPages) Set(Guarded);
        }
    }

    /// <summary>Takes a holder's claim back, where what it wanted did not work out.</summary>
    internal void RemoveHolder(IRegionHolder holder)
    {
        lock (_lock)
        {
            _holders.Remove(holder);
            if (!_alwaysGuarded && !_holders.HaveProvider) Clear(Guarded);
        }
    }

    /// <summary>Has a userfaultfd report each access to a missing page, or each write to a protected one, which waits until that is answered.</summary>
    /// <param name="userfaultfd">The userfaultfd.</param>
    /// <param name="region">What the memory is called in errors.</param>
    /// <param name="mode">UFFDIO_REGISTER_MODE flags.</param>
    /// <exception cref="SyscallException">UffdRegisterFailed.</exception>
    /// <exception cref="GuestMemoryException">RegionDisposed.</exception>
    internal void Register(SafeDescriptor userfaultfd, string region, ulong mode)
    {
        using var mapping = Lease();
        using var lease = new DescriptorLease(userfaultfd);
        var error = Userfaultfd.TryRegister(lease.Number, mapping.Address, (nuint)HostPage.RoundUp(Size, PageSize), mode);
        if (error == 0) return;
        throw new SyscallException("ioctl(UFFDIO_REGISTER)", error, $"Registering region {region} with userfaultfd", GuestMemoryError.UffdRegisterFailed, error switch
        {
            Errno.EINVAL when BackingPath is not null => "Only anonymous memory, memfd and hugetlbfs can be served by a handler, not a file on a disk file system.",
            Errno.EBUSY => "Another userfaultfd watches this memory already.",
            Errno.EPERM => "The mapping must be writable.",
            _ => null,
        });
    }

    /// <summary>Ends that where every page is there: whatever waits goes on, and no page is protected any more.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed.</exception>
    internal void Unregister(SafeDescriptor userfaultfd)
    {
        using var mapping = Lease();
        using var lease = new DescriptorLease(userfaultfd);
        _ = Userfaultfd.TryUnregister(lease.Number, (ulong)mapping.Address, HostPage.RoundUp(Size, PageSize));
    }

    /// <summary>
    /// Ends that for memory that is being released, with pages missing. Closing a userfaultfd while a thread waits on it would let that thread
    /// read zeros. Without access rights it gets an error instead; so those go first, then waiting threads are woken.
    /// </summary>
    internal void Withdraw(SafeDescriptor userfaultfd)
    {
        using (var mapping = Lease()) _ = Mman.TryProtect(mapping.Address, mapping.Length, Mman.PROT_NONE);
        // It also wakes; and a handler that has a duplicate and sees the connection end finds nothing left to serve.
        Unregister(userfaultfd);
    }
}
