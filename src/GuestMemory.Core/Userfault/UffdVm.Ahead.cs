using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>Filling pages that nobody has touched yet.</content>
internal sealed unsafe partial class UffdVm
{
    // What is filled at once: so little that a fault, which may have to wait for it, hardly notices; more while nothing faults.
    private const ulong SmallPiece = 16 << 10;
    private const ulong LargePiece = 256 << 10;
    private const ulong FullPiece = 2 << 20;

    private static readonly long s_quiet = Stopwatch.Frequency / 1000;

    private ulong _cursor;
    private ulong _piece = SmallPiece;
    private int _activity;
    private int _seen;
    private long _paced;

    /// <summary>Changes with every fault that is read.</summary>
    public int Activity
    {
        get => Volatile.Read(ref _activity);
        private set => Volatile.Write(ref _activity, value);
    }

    /// <summary>Whether every page has come, was removed, or cannot be had without a fault.</summary>
    public bool IsFilled => _counters->FillDone != 0;

    /// <summary>
    /// Fills the next missing pages. For one thread, which need not be the handler's. A page that cannot be had is left to its fault.
    /// </summary>
    /// <param name="background">Whether faults come first.</param>
    /// <param name="scratch">The calling thread's.</param>
    public FillOutcome FillAhead(bool background, PageScratch scratch)
    {
        if (_gone) return FillOutcome.Gone;
        if (_replaying) return ReplayAhead(scratch);
        var limit = background ? Pace() : FullPiece;
        if (!_policy.FillsAll || NextMissing(_state.Filled.PageCount) is not { } region)
        {
            _counters->FillDone = 1;
            return FillOutcome.Complete;
        }

        var at = region.AddressOf(_cursor);
        var length = Math.Max(limit, region.PageSize) & ~(region.PageSize - 1);
        length = Math.Min(length, region.End - at);
        length = (_state.Filled.Next(_cursor, _cursor + (length / HostPage.Size), set: true) - _cursor) * HostPage.Size;
        var outcome = FillBehindGate(region, at, length, _protection, scratch, out var done);
        _cursor += done / HostPage.Size;
        if (outcome == FillOutcome.Filled && done == 0) _cursor += region.PageSize / HostPage.Size;
        return outcome;
    }

    /// <summary>Fills ahead while no events are read. What comes in nothing but was passed over counts as filled.</summary>
    private FillOutcome FillBehindGate(UffdVmRegion region, ulong at, ulong length, ulong mode, PageScratch scratch, out ulong done)
    {
        done = 0;
        // What takes its time is done before the gate is closed to the reader of events.
        _source.Prepare(region.Offset + (at - region.Base), length);
        if (_source.Locate(region.Offset + (at - region.Base), length, scratch, out var run) == 0) length = Math.Min(length, Math.Max(run.Length, region.PageSize));
        if (!_gate.TryEnterFill()) return FillOutcome.Busy;
        int error;
        bool zero, ofSource;
        try
        {
            if (_state.Removed.IsSet(region.PageOf(at)))
            {
                // What was given back since is not brought in again.
                done = HostPage.Size;
                return FillOutcome.Filled;
            }

            error = Fill(region, at, length, mode, scratch, out done, out zero, out ofSource);
        }
        finally
        {
            _gate.ExitFill();
        }

        if (zero) _counters->FillZeroBytes += (long)done;
        else _counters->FillBytes += (long)done;
        if (error == 0 || done > 0) return FillOutcome.Filled;
        switch (error)
        {
            case Errno.EAGAIN when !ofSource:
                return FillOutcome.Busy;
            case Errno.ESRCH when !ofSource:
                return FillOutcome.Gone;
            case Errno.ENOMEM or Errno.ENOSPC when !ofSource:
                return FillOutcome.NoMemory;
            case Errno.EEXIST when !ofSource:
                _state.Filled.Set(region.PageOf(at));
                done = HostPage.Size;
                return FillOutcome.Filled;
            default:
                _counters->FillErrors++;
                return FillOutcome.Filled;
        }
    }

    private ulong Pace()
    {
        var activity = Activity;
        var now = Stopwatch.GetTimestamp();
        if (activity == _seen && now - _paced < s_quiet) return _piece;
        _piece = activity == _seen ? Math.Min(LargePiece, _piece * 2) : SmallPiece;
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

        var region = _byPage[^1];
        for (var i = 0; region.FirstPage > _cursor || _cursor >= region.FirstPage + region.PageCount; i++) region = _byPage[i];
        // A large page is filled from its beginning on, unless small ones are there.
        var first = region.FirstPage + ((_cursor - region.FirstPage) & ~((region.PageSize / HostPage.Size) - 1));
        if (!_state.Filled.IsSet(first) && !_state.Removed.IsSet(first)) _cursor = first;
        return region;
    }

    /// <summary>Brings in the aligned block around a page; whether the page came with it. What fails is left to its fault.</summary>
    private bool TryBringWindow(UffdVmRegion region, ulong start, PageScratch scratch)
    {
        var came = false;
        var from = region.Base + ((start - region.Base) & ~(_policy.Window - 1));
        var to = Math.Min(from + _policy.Window, region.End);
        var first = region.PageOf(start);
        for (var at = from; at < to;)
        {
            var page = region.PageOf(at);
            var last = region.PageOf(to - HostPage.Size) + 1;
            if (_state.Filled.IsSet(page) || (_state.Removed.IsSet(page) && page != first))
            {
                at += region.PageSize;
                continue;
            }

            var end = _state.Filled.Next(page, last, set: true);
            var error = Fill(region, at, (end - page) * HostPage.Size, _protection, scratch, out var done, out var zero, out _);
            if (!came && start >= at && start - at < done)
            {
                came = true;
                if (zero) _counters->Zero++;
                else _counters->Copied++;
            }

            if (!zero) _counters->WindowBytes += (long)done;
            at += done;
            if (error == 0) continue;
            if (error != Errno.EEXIST || done > 0) return came;
            at += region.PageSize;
        }

        return came;
    }
}
