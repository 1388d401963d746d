using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>Bringing a recorded working set in.</content>
internal sealed unsafe partial class UffdVm
{
    private const int HoldMilliseconds = 2;

    private volatile bool _replaying;
    private int _replayRun;
    private int _replaySlice;
    private ulong _replayDone;

    /// <summary>
    /// Whether a fault is left to its slice of the set, for a moment: most pages come sooner with their slice than by themselves. What has
    /// not come by then is brought in like any other page.
    /// </summary>
    private bool IsToHold(UffdVmRegion region, ulong start, ref UffdFault fault)
    {
        var isMissing = !_state.Filled.IsSet(region.PageOf(start)) || _state.Removed.IsSet(region.PageOf(start));
        if (fault.IsHeld)
        {
            fault.IsHeld = !isMissing;
            fault.IsHeldNoMore = isMissing;
            return false;
        }

        if (!_replaying || fault.IsHeldNoMore || !isMissing || _state.Removed.IsSet(region.PageOf(start))) return false;
        if (!_policy.Replay!.Contains((region.Offset + (start - region.Base)) / HostPage.Size)) return false;
        fault.IsHeld = true;
        fault.Due = Stopwatch.GetTimestamp() + (s_millisecond * HoldMilliseconds);
        return true;
    }

    /// <summary>Fills the next piece of the set.</summary>
    private FillOutcome ReplayAhead(ulong limit, ulong room, PageScratch scratch)
    {
        var plan = _policy.Replay!;
        if (_replaySlice == plan.SliceEnds.Length) return EndReplay();
        if (_replayRun == plan.SliceEnds[_replaySlice])
        {
            _replaySlice++;
            return FillOutcome.Filled;
        }

        var run = plan.Runs[_replayRun];
        var offset = ((ulong)run.First * HostPage.Size) + _replayDone;
        var length = ((ulong)run.Count * HostPage.Size) - _replayDone;
        var done = length;
        if (RegionOf(ref offset, ref length) is { } region)
        {
            if (region.Unit > room) return FillOutcome.NoRoom;
            var outcome = ReplayPart(region, offset, Math.Min(length, limit), scratch, out done);
            if (outcome == FillOutcome.NoMemory) EndReplay();
            if (outcome != FillOutcome.Filled) return outcome;
            done += offset - (((ulong)run.First * HostPage.Size) + _replayDone);
        }

        _replayDone += done;
        if (_replayDone < (ulong)run.Count * HostPage.Size) return FillOutcome.Filled;
        _replayDone = 0;
        _replayRun++;
        return FillOutcome.Filled;
    }

    private FillOutcome ReplayPart(UffdVmRegion region, ulong offset, ulong length, PageScratch scratch, out ulong passed)
    {
        var at = region.Base + (offset - region.Offset);
        var page = region.PageOf(at);
        // What came already, or went, is passed over.
        passed = HostPage.Size;
        if (_state.Filled.IsSet(page) || _state.Removed.IsSet(page)) return FillOutcome.Filled;
        var start = at & ~(region.Unit - 1);
        length = Math.Max((length + (at - start)) & ~(region.Unit - 1), region.Unit);
        page = region.PageOf(start);
        length = (_state.Filled.Next(page, page + (length / HostPage.Size), set: true) - page) * HostPage.Size;
        if (length == 0) return FillOutcome.Filled;
        var outcome = FillBehindGate(region, start, length, _protection, scratch, out var done);
        passed = Math.Max(done == 0 ? region.Unit : done, at - start + HostPage.Size) - (at - start);
        return outcome;
    }

    /// <summary>The region that holds a part of the image; the part is cut to it. Null where none does.</summary>
    private UffdVmRegion? RegionOf(ref ulong offset, ref ulong length)
    {
        UffdVmRegion? found = null;
        foreach (var region in _byPage)
        {
            if (region.Offset >= offset + length || offset >= region.Offset + region.Size) continue;
            if (found is null || region.Offset < found.Offset) found = region;
        }

        if (found is null) return null;
        var first = Math.Max(offset, found.Offset);
        length = Math.Min(offset + length, found.Offset + found.Size) - first;
        offset = first;
        return found;
    }

    private FillOutcome EndReplay()
    {
        _replaying = false;
        return FillOutcome.Filled;
    }

    private void WakeAll()
    {
        foreach (var region in _regions) _ = Userfaultfd.TryWake(_uffd, region.Base, region.Size);
    }
}
