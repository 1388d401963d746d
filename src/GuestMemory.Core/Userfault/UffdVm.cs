using System.Diagnostics;
using System.Runtime.CompilerServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// One VM being served: its userfaultfd, its regions, and which of its pages were removed. Runs on the handler's thread alone and
/// allocates nothing while it serves. The rules are those of the kernel: removals are applied before the faults of the same batch;
/// a page once removed is zero from then on; while a removal waits to be read no page can be filled, so EAGAIN reads on.
/// </summary>
internal sealed unsafe class UffdVm : IDisposable
{
    private const int Batch = 64;

    // How often a fault is tried again at once while a removal is under way, before the other VMs get their turn.
    private const int Patience = 1000;

    private readonly SafeDescriptor _descriptor;
    private readonly UffdImage _image;
    private readonly Region[] _regions;
    private readonly UffdMsg[] _messages = GC.AllocateArray<UffdMsg>(Batch, pinned: true);
    private readonly UffdMsg* _message;
    private readonly int _uffd;
    private (ulong Address, long Since)[] _waiting = new (ulong, long)[Batch];
    private int _waitingCount;
    private int _last;
    private SafeMapping? _zeros;

    public UffdVm(UffdHandover handover, UffdImage image)
    {
        _descriptor = handover.Userfaultfd;
        _uffd = _descriptor.Number;
        _image = image;
        _regions = [.. handover.Mappings.OrderBy(m => m.BaseHostVirtAddr).Select(m => new Region(m))];
        _message = (UffdMsg*)Unsafe.AsPointer(ref _messages[0]);
    }

    public SafeDescriptor Descriptor => _descriptor;

    /// <summary>Faults that were answered: with a page of the image, with zeros, or by waking who waited for a page that was there.</summary>
    public long FaultCount { get; private set; }

    /// <summary>Bytes copied out of the image.</summary>
    public long ByteCount { get; private set; }

    public LatencyHistogram Latency { get; } = new();

    /// <summary>What went wrong last, or null.</summary>
    public string? Error { get; private set; }

    /// <summary>The VMM's memory is gone: nothing is left to serve.</summary>
    public bool IsGone { get; private set; }

    /// <summary>Whether faults wait for memory, huge pages or the end of a removal.</summary>
    public bool HasDeferred => _waitingCount > 0;

    public void Dispose()
    {
        _descriptor.Dispose();
        _zeros?.Dispose();
    }

    /// <summary>Answers every fault that is waiting. Called when the userfaultfd is readable, and again while faults are deferred.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Serve()
    {
        ReadEvents();
        // Serving can read further events, which append to the list; what must be deferred goes back to its front.
        var deferred = 0;
        for (var i = 0; i < _waitingCount && !IsGone; i++)
        {
            var fault = _waiting[i];
            if (TryServe(fault.Address))
            {
                FaultCount++;
                Latency.Record(Stopwatch.GetTimestamp() - fault.Since);
            }
            else
            {
                _waiting[deferred++] = fault;
            }
        }

        _waitingCount = deferred;
    }

    /// <summary>Takes what is queued in the kernel: removals take effect at once, faults join the list.</summary>
    private void ReadEvents()
    {
        int count;
        do
        {
            count = Userfaultfd.TryRead(_uffd, _message, Batch);
            if (count < 0)
            {
                if (count is -Errno.EAGAIN or -Errno.EINTR) return;
                Fail($"Reading the userfaultfd failed: {Errno.Name(-count)}.");
                IsGone = true;
                return;
            }

            var now = Stopwatch.GetTimestamp();
            for (var i = 0; i < count; i++) Take(_message[i], now);
        }
        while (count == Batch);
    }

    private void Take(UffdMsg message, long now)
    {
        switch (message.@event)
        {
            case Userfaultfd.UFFD_EVENT_PAGEFAULT when (message.pagefault_flags & (Userfaultfd.UFFD_PAGEFAULT_FLAG_WP | Userfaultfd.UFFD_PAGEFAULT_FLAG_MINOR)) == 0:
                if (_waitingCount == _waiting.Length) Array.Resize(ref _waiting, _waiting.Length * 2);
                _waiting[_waitingCount++] = (message.pagefault_address, now);
                break;
            case Userfaultfd.UFFD_EVENT_REMOVE:
                MarkRemoved(message.remove_start, message.remove_end);
                break;
            case Userfaultfd.UFFD_EVENT_UNMAP:
                // No fault can come from there any more.
                break;
            case Userfaultfd.UFFD_EVENT_FORK:
                new SafeDescriptor((int)message.fork_ufd).Dispose();
                Fail("The VMM forked; its child's memory is not served.");
                break;
            default:
                Fail($"The userfaultfd sent event 0x{message.@event:x} (flags 0x{message.pagefault_flags:x}), which this handler cannot answer: the VMM registered its memory for more than missing pages.");
                break;
        }
    }

    private void MarkRemoved(ulong start, ulong end)
    {
        foreach (var region in _regions)
        {
            var from = Math.Max(start, region.Base);
            var to = Math.Min(end, region.End);
            if (from < to) (region.Removed ??= new AtomicBitmap(region.End - region.Base, HostPage.Size)).MarkDirty(from - region.Base, to - from);
        }
    }

    private Region? Find(ulong address)
    {
        var last = _regions[_last];
        if (address - last.Base < last.Size) return last;
        int low = 0, high = _regions.Length - 1;
        while (low <= high)
        {
            var middle = (low + high) >> 1;
            var region = _regions[middle];
            if (address < region.Base) high = middle - 1;
            else if (address >= region.End) low = middle + 1;
            else
            {
                _last = middle;
                return region;
            }
        }

        return null;
    }

    /// <summary>Answers one fault; false where it must be tried again later.</summary>
    private bool TryServe(ulong address)
    {
        if (Find(address) is not { } region)
        {
            Fail($"A fault at 0x{address:x} lies in none of the VM's {_regions.Length} mappings.");
            _ = Userfaultfd.TryPoison(_uffd, address & ~(HostPage.Size - 1), HostPage.Size);
            return true;
        }

        var start = address & ~(region.PageSize - 1);
        var step = region.PageSize;
        var patience = Patience;
        for (ulong done = 0; done < region.PageSize;)
        {
            var at = start + done;
            var length = region.PageSize - done;
            var zero = false;
            if (region.Removed is { } removed) length = Run(removed, at - region.Base, length, out zero);
            long copied = 0;
            var error = zero
                ? Zero(at, length)
                : Userfaultfd.TryCopy(_uffd, at, _image.Start + region.Offset + (at - region.Base), length, out copied);
            switch (error)
            {
                case 0:
                    done += length;
                    if (!zero) ByteCount += (long)length;
                    break;
                case Errno.EAGAIN when copied > 0:
                    done += (ulong)copied;
                    ByteCount += copied;
                    break;
                case Errno.EAGAIN:
                    // A removal waits to be read, or whoever removed has not run since: read it, give way, look again.
                    ReadEvents();
                    if (IsGone) return true;
                    if (--patience == 0) return false;
                    Thread.Yield();
                    break;
                case Errno.EEXIST:
                    // Somebody was faster; who waits may have gone to sleep all the same.
                    step = HostPage.Size;
                    _ = Userfaultfd.TryWake(_uffd, at, step);
                    done += step;
                    break;
                case Errno.EINVAL when step != region.PageSize:
                    // The page that was there is a huge one and fills the whole step.
                    _ = Userfaultfd.TryWake(_uffd, start, region.PageSize);
                    return true;
                case Errno.ENOENT:
                    // The range was unregistered since; the kernel has woken its waiters.
                    return true;
                case Errno.ESRCH:
                    IsGone = true;
                    return true;
                case Errno.ENOMEM or Errno.ENOSPC:
                    Fail($"The host has no page for 0x{at:x} ({Errno.Name(error)}); trying again. {(region.PageSize > HostPage.Size ? "Enlarge the pool of huge pages." : "")}");
                    return false;
                default:
                    Fail(error == Errno.EFAULT
                        ? $"The memory image {_image.Path} cannot be read at offset 0x{region.Offset + (at - region.Base):x}; was it truncated? The page 0x{at:x} of the VM is poisoned: who touches it gets SIGBUS."
                        : $"Filling the page 0x{at:x} failed: {Errno.Name(error)}. The page is poisoned: who touches it gets SIGBUS.");
                    _ = Userfaultfd.TryPoison(_uffd, at, length);
                    return true;
            }
        }

        return true;
    }

    /// <summary>How far from an offset the pages are all removed, or all not; at most <paramref name="length"/> bytes.</summary>
    private static ulong Run(AtomicBitmap removed, ulong offset, ulong length, out bool zero)
    {
        zero = removed.IsDirtyAt(offset);
        var run = HostPage.Size;
        while (run < length && removed.IsDirtyAt(offset + run) == zero) run += HostPage.Size;
        return Math.Min(run, length);
    }

    private int Zero(ulong start, ulong length)
    {
        var error = Userfaultfd.TryZero(_uffd, start, length);
        if (error != Errno.EINVAL) return error;
        // Huge pages know no ZEROPAGE: copy zeros, out of memory that was never touched.
        if (_zeros is null || _zeros.Length < length)
        {
            _zeros?.Dispose();
            _zeros = Mman.Map((nuint)length, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping a page of zeros");
        }

        return Userfaultfd.TryCopy(_uffd, start, (byte*)_zeros.Address, length, out _);
    }

    private void Fail(string error) => Error = error;

    private sealed class Region(GuestRegionUffdMapping mapping)
    {
        public readonly ulong Base = mapping.BaseHostVirtAddr;
        public readonly ulong Size = mapping.Size;
        public readonly ulong End = mapping.BaseHostVirtAddr + mapping.Size;
        public readonly ulong Offset = mapping.Offset;
        public readonly ulong PageSize = mapping.PageSize;
        public AtomicBitmap? Removed;
    }
}
