using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>Filling pages that the VM has not touched yet.</content>
internal sealed unsafe partial class UffdVm
{
    // What is filled at once: while faults come, no more than a fault can wait for, which is less where it must sleep meanwhile;
    // and more while nothing faults.
    private const ulong SmallPiece = 32 << 10;
    private const ulong FaultPiece = 96 << 10;
    private const ulong LargePiece = 512 << 10;
    public const ulong FullPiece = 2 << 20;

    // What the handler's thread fills at once while it waits for the filler, and how far ahead of it.
    private const ulong HelpPiece = 16 << 10;
    private const ulong HelpDistance = 4 << 20;

    private static readonly long s_quiet = Stopwatch.Frequency / 1000;

    private ulong _cursor;
    private ulong _ahead;
    private ulong _piece = FaultPiece;
    private int _activity;
    private int _seen;
    private int _sleeps;
    private long _paced;

    /// <summary>Changes with every fault that is read.</summary>
    public int Activity
    {
        get => Volatile.Read(ref _activity);
        private set => Volatile.Write(ref _activity, value);
    }

    /// <summary>Whether every page has come, was removed, or cannot be had without a fault.</summary>
    public bool IsFilled => _counters->FillDone == UffdCounters.FillComplete;

    /// <summary>The bytes out of the source that the last piece brought. For the filler.</summary>
    public ulong Brought { get; private set; }

    /// <summary>The bytes of its largest page.</summary>
    public ulong LargestUnit
    {
        get
        {
            ulong largest = 0;
            foreach (var region in _byPage) largest = Math.Max(largest, region.Unit);
            return largest;
        }
    }

    /// <summary>
    /// Fills the next missing pages. For one thread, which need not be the handler's. A page that cannot be had is left to its fault.
    /// </summary>
    /// <param name="background">Whether faults come first.</param>
    /// <param name="most">How many bytes at most; of a page all come.</param>
    /// <param name="room">How many bytes at most; of a page that is larger none come.</param>
    /// <param name="scratch">The calling thread's.</param>
    public FillOutcome FillAhead(bool background, ulong most, ulong room, PageScratch scratch)
    {
        Brought = 0;
        if (_gone) return FillOutcome.Gone;
        var limit = Math.Min(background ? Pace() : FullPiece, Math.Min(most, room));
        var outcome = _replaying ? ReplayAhead(limit, room, scratch) : FillNext(limit, room, scratch);
        if (outcome == FillOutcome.NoRoom) _counters->FillDone = UffdCounters.FillLimited;
        else if (outcome == FillOutcome.Filled && _counters->FillDone == UffdCounters.FillLimited) _counters->FillDone = 0;
        return outcome;
    }

    /// <summary>Leaves all that is missing to faults.</summary>
    public FillOutcome GiveUpFilling()
    {
        _counters->FillErrors++;
        _replaying = false;
        return EndFilling();
    }

    private FillOutcome EndFilling()
    {
        _counters->FillDone = UffdCounters.FillComplete;
        return FillOutcome.Complete;
    }

    private FillOutcome FillNext(ulong limit, ulong room, PageScratch scratch)
    {
        if (!_policy.FillsAll || NextMissing(_state.Filled.PageCount) is not { } region) return EndFilling();
        if (region.Unit > room) return FillOutcome.NoRoom;

        var at = region.AddressOf(_cursor);
        var length = Math.Max(limit, region.Unit) & ~(region.Unit - 1);
        length = Math.Min(length, region.End - at);
        length = (_state.Filled.Next(_cursor, _cursor + (length / HostPage.Size), set: true) - _cursor) * HostPage.Size;
        // A fault has brought it in since.
        if (length == 0) return FillOutcome.Filled;
        var outcome = FillBehindGate(region, at, length, _protection, scratch, out var done);
        _cursor += done / HostPage.Size;
        if (outcome == FillOutcome.Filled && done == 0) _cursor += region.Unit / HostPage.Size;
        return outcome;
    }

    /// <summary>Fills ahead while no events are read. What comes in nothing but was passed over counts as filled.</summary>
    private FillOutcome FillBehindGate(UffdVmRegion region, ulong at, ulong length, ulong mode, PageScratch scratch, out ulong done)
    {
        done = 0;
        var unit = region.Unit;
        // What takes its time is done before the gate is closed to the reader of events.
        var offset = region.Offset + (at - region.Base);
        if (_source.Locate(offset, length, scratch, out var run) == 0) length = Math.Min(length, Math.Max(run.Length, unit));
        _source.Prepare(offset, length, scratch);
        if (!_gate.TryEnterFill()) return FillOutcome.Busy;
        int error;
        bool zero, ofSource;
        try
        {
            // It lies elsewhere by now.
            if (RegionOf(region.FirstPage) != region) return FillOutcome.Busy;
            if (_state.Removed.IsSet(region.PageOf(at)))
            {
                // What was given back since is not brought in again.
                done = HostPage.Size;
                return FillOutcome.Filled;
            }

            error = FillWithoutFault(region, at, length, mode, scratch, out done, out zero, out ofSource);
            // The kernel fills nothing across two of the VMM's mappings, into which it may have split a region.
            if (error == Errno.ENOENT && !ofSource && length > region.Unit) error = FillWithoutFault(region, at, region.Unit, mode, scratch, out done, out zero, out ofSource);
        }
        finally
        {
            _gate.ExitFill();
        }

        if (!zero) Brought += done;
        if (error == 0 || done > 0) return FillOutcome.Filled;
        switch (error)
        {
            case Errno.EAGAIN when !ofSource:
                return FillOutcome.Busy;
            case Errno.ESRCH when !ofSource:
                return FillOutcome.Gone;
            case Errno.ENOMEM:
            case Errno.ENOSPC when !ofSource:
                return FillOutcome.NoMemory;
            case Errno.EEXIST when !ofSource && IsPoolEmpty(region, at):
                return FillOutcome.NoMemory;
            case Errno.EEXIST when !ofSource:
                _state.Filled.Set(region.PageOf(at));
                done = HostPage.Size;
                return FillOutcome.Filled;
            case Errno.EINVAL when !ofSource && (region.TryWiden() || region.Unit != unit):
                return FillOutcome.Busy;
            case Errno.EINVAL when !ofSource && (at - region.Base & (region.Unit - 1)) != 0:
                // The rest of a huge page that was there.
                done = region.Unit - (at - region.Base & (region.Unit - 1));
                _state.Filled.Set(region.PageOf(at), done / HostPage.Size);
                return FillOutcome.Filled;
            default:
                _counters->FillErrors++;
                return FillOutcome.Filled;
        }
    }

    /// <summary>
    /// What the handler's thread does while it waits for the filler's piece: a small one of its own, further on. No event is read
    /// meanwhile, so that what was looked at stays as it was. False where nothing can be had without waiting for it.
    /// </summary>
    private bool FillWhileWaiting(PageScratch scratch)
    {
        if (_replaying || _counters->FillDone != 0 || _policy.FillRate != 0 || _policy.MemoryLimit != 0) return false;
        _ahead = _state.Filled.Next(Math.Max(_ahead, Volatile.Read(ref _cursor) + (HelpDistance / HostPage.Size)), _state.Filled.PageCount, set: false);
        if (_ahead >= _state.Filled.PageCount || _state.Removed.IsSet(_ahead)) return false;
        var region = RegionOf(_ahead);
        var at = region.AddressOf(_ahead);
        var length = Math.Min(HelpPiece, region.End - at);
        if (region.Unit != HostPage.Size || !_source.IsReady(region.Offset + (at - region.Base), length)) return false;
        length = (_state.Filled.Next(_ahead, _ahead + (length / HostPage.Size), set: true) - _ahead) * HostPage.Size;
        if (length == 0) return true;
        _ = FillWithoutFault(region, at, length, _protection, scratch, out var done, out _, out _);
        _ahead += done / HostPage.Size;
        return done > 0;
    }

    /// <summary>Fills pages that no fault waits for, counts what came and notes it.</summary>
    private int FillWithoutFault(UffdVmRegion region, ulong at, ulong length, ulong mode, PageScratch scratch, out ulong done, out bool zero, out bool ofSource)
    {
        var error = Fill(region, at, length, mode, scratch, out done, out zero, out ofSource);
        _ = Interlocked.Add(ref zero ? ref _counters->FillZeroBytes : ref _counters->FillBytes, (long)done);
        NoteFilled(region.PageOf(at), done / HostPage.Size);
        return error;
    }

    private ulong Pace()
    {
        var activity = Activity;
        var now = Stopwatch.GetTimestamp();
        if ((activity == _seen || _piece == SmallPiece) && now - _paced < s_quiet) return _piece;
        _piece = activity == _seen ? Math.Min(LargePiece, _piece * 2) : _gate.Sleeps == _sleeps ? FaultPiece : SmallPiece;
        _sleeps = _gate.Sleeps;
        _seen = activity;
        _paced = now;
        return _piece;
    }

    /// <summary>Moves the cursor to the next page that is missing, and not because it was removed.</summary>
    private UffdVmRegion? NextMissing(ulong end)
    {
        while (true)
        {
            _cursor = _state.Filled.Next(_cursor, end, set: false);
            if (_cursor >= end) return null;
            if (!_state.Removed.IsSet(_cursor)) break;
            _cursor = _state.Removed.Next(_cursor, end, set: false);
        }

        var region = RegionOf(_cursor);
        // A large page is filled from its beginning on, unless small ones are there.
        var first = region.FirstPage + ((_cursor - region.FirstPage) & ~((region.Unit / HostPage.Size) - 1));
        if (!_state.Filled.IsSet(first) && !_state.Removed.IsSet(first)) _cursor = first;
        return region;
    }

    private UffdVmRegion RegionOf(ulong page)
    {
        var region = _byPage[^1];
        for (var i = 0; page - region.FirstPage >= region.PageCount; i++) region = _byPage[i];
        return region;
    }

    private (ulong From, ulong To) WindowOf(UffdVmRegion region, ulong start)
    {
        var from = region.Base + ((start - region.Base) & ~(_policy.Window - 1));
        return (from, Math.Min(from + _policy.Window, region.End));
    }

    /// <summary>Brings in the aligned block around a page; whether the page came with it. What fails is left to its fault.</summary>
    private bool TryBringWindow(UffdVmRegion region, ulong start, PageScratch scratch)
    {
        var came = false;
        var (from, to) = WindowOf(region, start);
        var first = region.PageOf(start);
        for (var at = from; at < to;)
        {
            var page = region.PageOf(at);
            var last = region.PageOf(to - HostPage.Size) + 1;
            if (_state.Filled.IsSet(page) || (_state.Removed.IsSet(page) && page != first))
            {
                at += region.Unit;
                continue;
            }

            var end = _state.Filled.Next(page, last, set: true);
            if (end == page) continue;
            var error = Fill(region, at, (end - page) * HostPage.Size, _protection, scratch, out var done, out var zero, out _);
            if (!came && start >= at && start - at < done)
            {
                came = true;
                if (zero) _counters->Zero++;
                else _counters->Copied++;
            }

            if (!zero) _counters->WindowBytes += (long)done;
            NoteFilled(page, done / HostPage.Size);
            at += done;
            if (error == 0) continue;
            if (error != Errno.EEXIST || done > 0) return came;
            at += region.Unit;
        }

        return came;
    }
}
