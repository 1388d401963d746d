using System.Diagnostics;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Processes;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Reports what a VM wrote or gave back, and takes the marks where it is asked to: afterwards it reports only what is written anew. It
/// works beside the process that serves the VM, in any process, one call at a time. Marks that are taken lie in the VM's state until they
/// are confirmed: whichever process ends meanwhile, what was not confirmed is reported again.
/// </summary>
internal sealed class WriteTracker(UffdVmState state, IReadOnlyList<GuestRegionUffdMapping> mappings, SafeDescriptor userfaultfd, int processId)
{
    private static readonly long s_patience = Stopwatch.Frequency / 200;

    // As they lie when a call begins.
    private UffdVmRegion[] _regions = [];

    /// <summary>
    /// A bitmap for each region; addresses are offsets in the image. Whatever the VM had done before the call is among them. False
    /// where the process that serves the VM has not begun, or is in the middle of a removal or of making a page writable: ask again.
    /// </summary>
    /// <param name="take">Whether what is told is clean from then on, once it is confirmed.</param>
    /// <param name="bitmaps">What the VM wrote.</param>
    /// <exception cref="GuestMemoryException">UffdUnsupported: the kernel does not say what was written.</exception>
    public bool TryGet(bool take, out IEnumerable<DirtyBitmap> bitmaps)
    {
        bitmaps = [];
        // It was handed over, and no worker serves it yet.
        if (!state.IsTracked) return false;
        _regions = UffdVmRegion.Of(mappings, state.Moves);
        var isAsync = IsAsync();
        var words = _regions.Select(static region => new ulong[(int)((region.PageCount + 63) / 64)]).ToArray();
        state.KeepFound(_regions);
        // First: the kernel forgets a written page when it is removed, and that is on record by then.
        if (isAsync && take) Take();
        else if (isAsync) Scan(words);
        if (!state.Reads.TryAwait()) return false;
        if (take)
        {
            state.Written.MoveTo(state.Taken);
            // Between the move and the protection: a page whose mark was moved is writable before it is protected. A page that is opened
            // from here on gets its mark anew.
            if (!state.TryAwaitOpened()) return false;
            KeepWhatIsNotGone();
            if (!isAsync && !TryProtect()) return false;
        }

        for (var i = 0; i < words.Length; i++)
        {
            state.Taken.OrTo(_regions[i].FirstPage, _regions[i].PageCount, words[i]);
            if (!take) state.Written.OrTo(_regions[i].FirstPage, _regions[i].PageCount, words[i]);
        }

        bitmaps = words.Zip(_regions, (bits, region) => new DirtyBitmap(region.Offset, region.Size, HostPage.Size, bits, $"process {processId}, offsets in the image"));
        return true;
    }

    /// <summary>The same for many VMs, one after the other; null where it is to be asked again.</summary>
    public static IReadOnlyList<DirtyBitmap>? TryGet(IEnumerable<WriteTracker> vms, bool take)
    {
        var all = new List<DirtyBitmap>();
        foreach (var vm in vms)
        {
            if (!vm.TryGet(take, out var bitmaps)) return null;
            all.AddRange(bitmaps);
        }

        return all;
    }

    /// <summary>What was taken last has arrived where it is needed.</summary>
    public void Confirm() => state.Taken.Reset(0, state.Taken.PageCount);

    private bool IsAsync()
    {
        using var lease = new DescriptorLease(userfaultfd);
        return (Userfaultfd.FeaturesOf(lease.Number) & Userfaultfd.UFFD_FEATURE_WP_ASYNC) != 0;
    }

    private void Scan(ulong[][] words)
    {
        using var pagemap = OpenPagemap();
        var found = new PageRegion[256];
        for (var i = 0; i < words.Length; i++)
        {
            var region = _regions[i];
            for (var at = region.Base; at < region.End;)
            {
                var count = Check(Pagemap.TryScanWritten(pagemap, at, region.End, found, protect: false, out at));
                foreach (var range in found.AsSpan(0, count))
                {
                    for (var page = (range.start - region.Base) / HostPage.Size; page < (range.end - region.Base) / HostPage.Size; page++) words[i][page >> 6] |= 1UL << (int)(page & 63);
                }
            }
        }
    }

    /// <summary>Takes what the kernel noted.</summary>
    private void Take()
    {
        using var pagemap = OpenPagemap();
        foreach (var region in _regions)
        {
            for (var at = region.Base; at < region.End;)
            {
                var count = Pagemap.TryScanWritten(pagemap, at, region.End, state.Found, protect: true, out at);
                // Also where it failed: it may have done a part before.
                state.KeepFound(_regions);
                _ = Check(count);
            }
        }
    }

    /// <summary>
    /// Between the moment at which a removal is read and that at which the VM's pages go some time can pass. Of pages that are still
    /// there, and were not brought in again since, the mark stays for the next time. (Who brought one in and died before noting it
    /// leaves a page that is told each time: better one too many than one too few.)
    /// </summary>
    private void KeepWhatIsNotGone()
    {
        using var pagemap = TryOpenPagemap(out _);
        IReadOnlyList<ProcessMapping>? mapped = null;
        foreach (var region in _regions)
        {
            var end = region.FirstPage + region.PageCount;
            for (var page = state.Removing.Next(region.FirstPage, end, set: true); page < end; page = state.Removing.Next(page, end, set: true))
            {
                var next = state.Removing.Next(page, end, set: false);
                if (pagemap is null) state.Written.Set(page, next - page);
                else KeepPresent(pagemap, region, page, next, IsShared(mapped ??= Mapped(), region));
                page = next;
            }
        }
    }

    private IReadOnlyList<ProcessMapping> Mapped()
    {
        try
        {
            return ProcessMapping.GetAll(processId);
        }
        catch (GuestMemoryException)
        {
            // It has ended, and nothing of it is removed any more.
            return [];
        }
    }

    private static bool IsShared(IReadOnlyList<ProcessMapping> mapped, UffdVmRegion region) =>
        mapped.FirstOrDefault(mapping => region.Base >= mapping.Address && region.Base < mapping.End) is { IsShared: true };

    private void KeepPresent(SafeFileHandle pagemap, UffdVmRegion region, ulong page, ulong end, bool isShared)
    {
        Span<PageRegion> present = stackalloc PageRegion[32];
        for (ulong at = region.AddressOf(page), last = region.AddressOf(end); at < last;)
        {
            var from = at;
            var count = Check(Pagemap.TryScanPresent(pagemap, at, last, isShared, present, out at));
            foreach (var range in present[..count])
            {
                state.Removing.Reset(region.PageOf(from), (range.start - from) / HostPage.Size);
                state.Written.Set(region.PageOf(range.start), (range.end - range.start) / HostPage.Size);
                from = range.end;
            }

            state.Removing.Reset(region.PageOf(from), (at - from) / HostPage.Size);
        }
    }

    /// <summary>Protects what was taken. False where a removal waits to be read.</summary>
    private bool TryProtect()
    {
        using var lease = new DescriptorLease(userfaultfd);
        foreach (var region in _regions)
        {
            var end = region.FirstPage + region.PageCount;
            for (var page = state.Taken.Next(region.FirstPage, end, set: true); page < end; page = state.Taken.Next(page, end, set: true))
            {
                var next = state.Taken.Next(page, end, set: false);
                // Marks are of whole pages of the VM's memory, which may be large ones.
                var start = region.Base + ((region.AddressOf(page) - region.Base) & ~(region.PageSize - 1));
                if (!TryProtect(lease.Number, start, HostPage.RoundUp(region.AddressOf(next) - start, region.PageSize), region.PageSize)) return false;
                page = next;
            }
        }

        return true;
    }

    private static bool TryProtect(int uffd, ulong start, ulong length, ulong pageSize)
    {
        var started = Stopwatch.GetTimestamp();
        int error;
        while ((error = Userfaultfd.TryProtect(uffd, start, length)) == Errno.EAGAIN)
        {
            if (Stopwatch.GetTimestamp() - started > s_patience) return false;
            Thread.Yield();
        }

        if (error is 0 or Errno.ESRCH || length == pageSize) return true;
        // A part is not mapped or not registered any more, and it ended there.
        for (ulong done = 0; done < length; done += pageSize)
        {
            if (!TryProtect(uffd, start + done, pageSize, pageSize)) return false;
        }

        return true;
    }

    private int Check(long count) => count >= 0 ? (int)count
        : throw new SyscallException("ioctl(PAGEMAP_SCAN)", (int)-count, $"Asking what process {processId} wrote", GuestMemoryError.UffdUnsupported);

    private SafeFileHandle OpenPagemap() => TryOpenPagemap(out var exception)
        ?? throw new GuestMemoryException(GuestMemoryError.UffdUnsupported, $"The kernel tracks what process {processId} wrote, and its answer cannot be read: {exception!.Message}", exception);

    private SafeFileHandle? TryOpenPagemap(out Exception? why)
    {
        why = null;
        try
        {
            return File.OpenHandle($"/proc/{processId}/pagemap");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            why = exception;
            return null;
        }
    }
}
