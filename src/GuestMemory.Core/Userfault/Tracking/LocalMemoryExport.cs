using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// An export of a VM whose memory and vCPUs are of this process. A userfaultfd of its own watches the memory until disposal, and a thread answers what it reports; meanwhile every
/// access of this process is guarded. Memory that is given back is copied first (<see cref="IRegionHolder.BeginChange"/>).
/// </summary>
internal sealed unsafe class LocalMemoryExport : UffdLiveExport, IRegionHolder
{
    private const int Batch = 64;
    private const ulong PiecePages = 16;

    private readonly KvmVm _vm;
    private readonly MmapRegion[] _mappings;
    private readonly UffdVmRegion[] _regions;
    private readonly SafeDescriptor _uffd;
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly LiveCapture _capture;
    private readonly Thread _thread;

    // Held while faults are answered, while memory is given back, and at the instant. Before a region's own lock, and never while a page is waited for.
    private readonly object _serving = new();
    private bool _isHeld;
    private volatile bool _isOver;

    /// <param name="vm">The VM.</param>
    /// <param name="output">The file, as long as the memory and all zeros; stays the caller's.</param>
    /// <param name="cancellation">Ends the wait for accesses that are under way.</param>
    /// <exception cref="GuestMemoryException">LiveUnsupported, LiveBusy; RegionInUse: a span or a reference over its memory is in use; UffdDenied; VmDisposed.</exception>
    public LocalMemoryExport(KvmVm vm, SafeFileHandle output, CancellationToken cancellation)
    {
        _vm = vm;
        if (!vm.TryBeginExport())
        {
            _wake.Dispose();
            throw new GuestMemoryException(GuestMemoryError.LiveBusy, "The memory of the VM is being exported while it runs; one such export at a time.");
        }

        try
        {
            foreach (var region in vm.Memory.Regions) Check(region);
            foreach (var slot in vm.Slots) Check(slot, vm.Memory);
            _mappings = [.. vm.Memory.Regions.Select(static region => region.GetMmapRegion())];
            var pages = new OwnLivePages(vm.Memory);
            _regions = UffdVmRegion.Of(pages.Mappings);
            _uffd = CreateUserfaultfd();
            _capture = new LiveCapture(pages, output, null);
            MmapRegion.HandOver(_mappings, this, cancellation);
            _isHeld = true;
            foreach (var (region, mapping) in vm.Memory.Regions.Zip(_mappings)) Register(region, mapping);
            _thread = new Thread(Answer) { IsBackground = true, Name = "live-export" };
            _thread.Start();
        }
        catch
        {
            _thread = null!;
            Dispose();
            throw;
        }
    }

    string IRegionHolder.Description => $"the export of {_vm}";

    bool IRegionHolder.IsLive => !_isOver;

    // An access may have to wait for it, and so is guarded.
    bool IRegionHolder.ProvidesPages => true;

    public override void Protect(CancellationToken cancellation)
    {
        for (var i = 0; i < _regions.Length; i++)
        {
            // Also what is missing: the kernel notes that it is not to be written without a fault.
            for (ulong at = 0; at < _regions[i].Size; at += LiveProtection.Piece)
            {
                cancellation.ThrowIfCancellationRequested();
                var length = Math.Min(LiveProtection.Piece, _regions[i].Size - at);
                WithoutTouches(i, at, length, address => LiveProtection.ProtectRange(_uffd.Number, address, length, HostPage.Size, Again));
            }
        }

        while (TryTakeOpened())
        {
            cancellation.ThrowIfCancellationRequested();
            ProtectMarked(_capture.Again, LiveProtection.Piece, cancellation);
        }

        _capture.ThrowIfFailed();

        // A page whose mark was moved is writable before it is protected: no fault is being answered.
        bool TryTakeOpened()
        {
            lock (_serving) return _capture.TryTakeOpened();
        }
    }

    public override void Take()
    {
        lock (_serving)
        {
            ProtectMarked(_capture.Opened, ulong.MaxValue, CancellationToken.None);
            _capture.Begin();
        }

        _capture.ThrowIfFailed();
    }

    public override (ulong Bytes, long Pages) Sweep(Action<ulong>? progress, CancellationToken cancellation)
    {
        _capture.Sweep(progress, cancellation);
        return _capture.Written;
    }

    void IRegionHolder.BeginChange(MmapRegion region, ulong offset, ulong length)
    {
        var index = Array.IndexOf(_mappings, region);
        var first = _regions[index].FirstPage + (offset / HostPage.Size);
        var count = (HostPage.RoundUp(offset + length, HostPage.Size) / HostPage.Size) - (offset / HostPage.Size);
        do
        {
            // What is much is copied while faults are answered in between; under the lock that stays nothing is left to copy.
            for (ulong done = 0; done < count; done += PiecePages)
            {
                lock (_serving)
                {
                    if (_isOver || !_capture.IsHolding) break;
                    _capture.BeforeOpening(first + done, Math.Min(PiecePages, count - done));
                }
            }
        }
        while (!TryKeepServing(first, count));
    }

    void IRegionHolder.EndChange() => Monitor.Exit(_serving);

    void IRegionHolder.Release(MmapRegion region)
    {
        _capture.Fail(Removed());
        try
        {
            region.Unregister(_uffd);
        }
        catch (ObjectDisposedException)
        {
            // The export has ended meanwhile: nothing is protected.
        }
    }

    internal static GuestMemoryException Removed() => new(GuestMemoryError.LiveFailed, "Memory of the VM was removed before it was exported.");

    protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        if (_uffd is not null && _isHeld)
        {
            foreach (var mapping in _mappings)
            {
                try
                {
                    // The threads that wait go on, and nothing is protected any more.
                    mapping.Unregister(_uffd);
                }
                catch (GuestMemoryException)
                {
                    // It was removed, and has let go of it.
                }
            }
        }

        lock (_serving) _isOver = true;
        EventFd.Signal(_wake);
        _thread?.Join();
        if (_isHeld)
        {
            foreach (var mapping in _mappings) mapping.RemoveHolder(this);
        }

        _capture?.Dispose();
        _uffd?.Dispose();
        _wake.Dispose();
        _vm.EndExport();
    }

    private static void Check(GuestMemoryRegion region)
    {
        var mapping = region.GetMmapRegion();
        var why = !mapping.IsOwned ? "wraps memory that the caller mapped"
            : mapping.PageSize != HostPage.Size ? "has huge pages, each of which would have to be copied whole before a write goes on"
            : mapping.BackingPath is { } path && ((mapping.Flags & MapFlags.Shared) == 0 || mapping.File is not { } file || (Memfd.Seals(file.File) & Memfd.F_SEAL_SHRINK) == 0)
                ? $"is a mapping of a file ({path}), which can change otherwise than by the VM's writes; only anonymous memory and sealed memfds can be held as they are at one instant"
            : mapping.MayWait ? "has its pages from a page-fault handler; export the VM of that handler"
            : null;
        if (why is not null) throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, $"Region {region} {why}. Pause the VM and export it as it stands.");
    }

    /// <summary>Refuses memory that was added and is base memory too: who touches it there is not seen by <see cref="MmapRegion.WithoutTouches"/> of the region.</summary>
    private static void Check(KvmSlot slot, GuestMemoryMmap memory)
    {
        if (slot.IsBase) return;
        var start = slot.Memory.HostAddress;
        foreach (var region in memory.Regions)
        {
            var address = region.GetMmapRegion().HostAddress;
            if (start < address + region.Size && address < start + slot.Size)
                throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, $"The memory of region {region} was added to the VM once more ({slot}). Remove that slot, or pause the VM and export it as it stands.");
        }
    }

    private static SafeDescriptor CreateUserfaultfd()
    {
        try
        {
            return Userfaultfd.Create(Userfaultfd.UFFD_FEATURE_PAGEFAULT_FLAG_WP | Userfaultfd.UFFD_FEATURE_WP_HUGETLBFS_SHMEM | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED);
        }
        catch (SyscallException exception) when (exception.Error == GuestMemoryError.UffdUnsupported)
        {
            throw Unsupported(exception, "This kernel cannot write-protect memory that has not been touched yet (UFFD_FEATURE_WP_UNPOPULATED, Linux 6.4).");
        }
    }

    private void Register(GuestMemoryRegion region, MmapRegion mapping)
    {
        try
        {
            mapping.Register(_uffd, region.ToString(), Userfaultfd.UFFDIO_REGISTER_MODE_WP);
        }
        catch (SyscallException exception)
        {
            throw Unsupported(exception, $"The memory of region {region} cannot be write-protected.");
        }
    }

    private static GuestMemoryException Unsupported(SyscallException exception, string why) => new(GuestMemoryError.LiveUnsupported, $"{why} {exception.Message}", exception);

    // No event of it makes the kernel refuse.
    private static void Again() => Thread.Yield();

    /// <summary>Keeps the lock that <see cref="IRegionHolder.EndChange"/> lets go of; false where pages of a range are not copied yet, since the instant has just been.</summary>
    private bool TryKeepServing(ulong first, ulong count)
    {
        var isKept = false;
        Monitor.Enter(_serving);
        try
        {
            if (!_isOver && _capture.Wants(first, count)) return false;
            if (!_isOver) _capture.BeforeOpening(first, count);
            isKept = true;
            return true;
        }
        finally
        {
            if (!isKept) Monitor.Exit(_serving);
        }
    }

    /// <summary>Protects the pages that are marked, so many bytes of a region at once: until these are protected nobody touches, or gives back, memory of that.</summary>
    private void ProtectMarked(PageBits marks, ulong piece, CancellationToken cancellation)
    {
        for (var i = 0; i < _regions.Length; i++)
        {
            var region = _regions[i];
            ulong length;
            for (ulong at = 0; at < region.Size; at += length)
            {
                cancellation.ThrowIfCancellationRequested();
                length = Math.Min(piece, region.Size - at);
                var (first, count) = (region.FirstPage + (at / HostPage.Size), length / HostPage.Size);
                WithoutTouches(i, at, length, _ => LiveProtection.ProtectMarked(_uffd.Number, region, first, count, marks, Again));
            }
        }
    }

    /// <summary>Protects pages: no thread of this process has brought one in to touch it, and finds it protected.</summary>
    private void WithoutTouches(int index, ulong offset, ulong length, Action<ulong> protect)
    {
        try
        {
            _ = _mappings[index].WithoutTouches(offset, length, address =>
            {
                protect((ulong)address);
                return 0;
            });
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.RegionDisposed)
        {
            throw Removed();
        }
    }

    /// <summary>The thread that answers the writes to protected pages.</summary>
    private void Answer()
    {
        var messages = stackalloc UffdMsg[Batch];
        var knowsNoWait = true;
        Span<PollFd> entries = stackalloc PollFd[2];
        try
        {
            while (!_isOver)
            {
                entries[0] = new PollFd { fd = _uffd.Number, events = Poll.POLLIN };
                entries[1] = new PollFd { fd = _wake.Number, events = Poll.POLLIN };
                _ = Poll.Wait(entries, -1);
                // What was read is answered with it, before the lock is let go: a fault that was read is no longer the kernel's to tell again.
                lock (_serving) Answer(messages, Userfaultfd.TryRead(_uffd.Number, messages, Batch, ref knowsNoWait));
            }
        }
        catch (Exception exception)
        {
            // Nobody answers any more: nothing is to wait.
            _capture.Fail(exception);
            foreach (var region in _regions) _ = Userfaultfd.TryUnregister(_uffd.Number, region.Base, region.Size);
        }
    }

    private void Answer(UffdMsg* messages, int count)
    {
        for (var i = 0; i < count; i++)
        {
            var address = messages[i].pagefault_address & ~(HostPage.Size - 1);
            if (messages[i].@event != Userfaultfd.UFFD_EVENT_PAGEFAULT || RegionOf(address) is not { } found) continue;
            _capture.BeforeOpening(found.PageOf(address), 1);
            int error;
            while ((error = Userfaultfd.TryUnprotect(_uffd.Number, address, HostPage.Size)) == Errno.EAGAIN) Thread.Yield();
            // It was unregistered meanwhile: who waits finds out.
            if (error != 0) _ = Userfaultfd.TryWake(_uffd.Number, address, HostPage.Size);
        }
    }

    private UffdVmRegion? RegionOf(ulong address)
    {
        foreach (var region in _regions)
        {
            if (address - region.Base < region.Size) return region;
        }

        return null;
    }
}
