using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>A VM whose memory is written to a file while it runs (<see cref="LiveCapture"/>).</content>
internal sealed unsafe partial class UffdVm
{
    // How long a removal may stand in the way: who gives memory back may wait for its processor.
    private static readonly TimeSpan s_livePatience = TimeSpan.FromSeconds(10);

    private LiveCapture? _live;
    private UffdVmFiles? _liveFiles;
    private UffdVmRegion[] _protectedRegions = [];
    private bool _isHeld;

    /// <summary>Whether an event waits that must not be read yet, so that the userfaultfd is readable all the time. For the thread that serves.</summary>
    public bool IsHeld => _isHeld;

    /// <summary>From here on it is noted what becomes writable. For the thread that serves.</summary>
    /// <exception cref="GuestMemoryException">LiveUnsupported; LiveBusy.</exception>
    public void BeginLive(LiveCapture live, UffdVmFiles files)
    {
        if ((Features & Userfaultfd.UFFD_FEATURE_WP_ASYNC) != 0)
            throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, "The VMM has the kernel note what the VM writes (WP_ASYNC): no write waits then until the page is copied. Pause the VM and export it as it stands.");
        if (_live is not null) throw new GuestMemoryException(GuestMemoryError.LiveBusy, "The memory of the VM is being exported while it runs; one such export at a time.");
        (_live, _liveFiles) = (live, files);
        _protectedRegions = _regions;
    }

    /// <summary>
    /// Write-protects the pages that are there while the VM runs, which may then write some again. What comes later comes protected, or is
    /// noted. For any thread.
    /// </summary>
    public void ProtectLive(LiveCapture live, CancellationToken cancellation)
    {
        using var lease = new DescriptorLease(_descriptor);
        var regions = _protectedRegions;
        foreach (var region in regions) ProtectPresent(_liveFiles!, region, Again);
        while (live.TryTakeOpened())
        {
            // A page whose mark was moved is writable before it is protected. One that is opened from here on is marked anew.
            while (!_state.TryAwaitOpened()) Again();
            LiveProtection.ProtectMarked(_uffd, regions, live.Again, Again);
        }

        void Again()
        {
            cancellation.ThrowIfCancellationRequested();
            Thread.Yield();
        }
    }

    /// <summary>
    /// The instant: protects what was opened since, so that every page is protected or missing. No fault is answered meanwhile: a thread of the VM that
    /// writes a page that is protected already waits, and what was written before is in the memory. So it is one instant also where no
    /// thread of the VM is stopped. For the thread that serves.
    /// </summary>
    /// <exception cref="GuestMemoryException">LiveFailed: a removal stood in the way for too long.</exception>
    public void TakeLive(PageScratch scratch)
    {
        if (_live is not { } live) return;
        var started = Stopwatch.GetTimestamp();
        if (_regions == _protectedRegions) LiveProtection.ProtectMarked(_uffd, _regions, live.Opened, Again);

        // The VMM moved its memory, which may have happened at any step of this.
        while (_regions != _protectedRegions)
        {
            _protectedRegions = _regions;
            foreach (var region in _protectedRegions) ProtectPresent(_liveFiles!, region, Again);
        }

        live.Begin();

        void Again()
        {
            // A removal waits to be read; until that, nothing can be protected.
            ReadEvents(scratch);
            Thread.Yield();
            if (_gone) throw new GuestMemoryException(GuestMemoryError.LiveFailed, "The VM has ended.");
            if (Stopwatch.GetElapsedTime(started) > s_livePatience)
                throw new GuestMemoryException(GuestMemoryError.LiveFailed, $"The VM gives memory back without end: for {s_livePatience.TotalSeconds:0} s its pages could not be protected.");
        }
    }

    /// <summary>Serves on as without it. For the thread that serves.</summary>
    public void EndLive(LiveCapture live)
    {
        if (_live != live) return;
        _live = null;
        _isHeld = false;
    }

    /// <summary>The VM is not served any more. For the thread that serves.</summary>
    public void EndLive() => FailLive("The VM ended");

    /// <summary>The VM is not served any more: what holds its removals back ends. For the thread that serves.</summary>
    private void FailLive(string why)
    {
        _live?.End(new GuestMemoryException(GuestMemoryError.LiveFailed, $"{why} before its memory was exported."));
        _live = null;
        _isHeld = false;
    }

    /// <summary>How many messages may be read: while pages must stay as they are, faults alone.</summary>
    private int MostToRead()
    {
        if (_live is not { IsHolding: true } live)
        {
            _isHeld = false;
            return UffdVmState.Batch;
        }

        // In this order: what makes it readable is no fault where there was none afterwards.
        Span<PollFd> entry = [new PollFd { fd = _uffd, events = Poll.POLLIN }];
        var isReadable = Poll.Wait(entry, 0) > 0;
        var most = live.CountFaults();
        _isHeld = most == 0 && isReadable;
        return most;
    }

    /// <summary>A removal was read: while pages must stay as they are none should have been.</summary>
    private void NoteChange(ulong start, ulong end)
    {
        if (_live is not { IsHolding: true } live) return;
        foreach (var region in _regions)
        {
            var from = Math.Max(start, region.Base);
            var to = Math.Min(end, region.End);
            if (from < to) live.NoteRemoval(region.PageOf(from), (to - from) / HostPage.Size);
        }
    }

    private void ProtectPresent(UffdVmFiles files, UffdVmRegion region, Action again)
    {
        var end = region.Offset + region.Size;
        // A page that the memfd does not have is missing, and comes protected or is noted.
        for (var at = files.NextData(region.Offset, end); at < end; at = files.NextData(at, end))
        {
            var next = Math.Min(HostPage.RoundUp(files.NextHole(at, end) - region.Offset, region.PageSize) + region.Offset, end);
            at = region.Offset + ((at - region.Offset) & ~(region.PageSize - 1));
            while (at < next)
            {
                var length = Math.Min(LiveProtection.Piece, next - at);
                LiveProtection.ProtectRange(_uffd, region.Base + (at - region.Offset), length, region.PageSize, again);
                at += length;
            }
        }
    }
}
