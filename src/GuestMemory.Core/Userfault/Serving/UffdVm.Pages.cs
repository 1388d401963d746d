using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>Answering a fault.</content>
internal sealed unsafe partial class UffdVm
{
    // How often a fault is tried again at once while a removal is under way, and how long it waits then: 1, 2, 4 and 8 ms, since a VMM
    // that is stopped in the middle of a removal must not keep a processor busy.
    private const int Patience = 200;
    private const int ShortPatience = 4;
    private const int MaxRemovalShift = 3;

    // A source that fails is asked again after 10, 20, 40 ms and so on, and from the seventh time on every 640 ms.
    private const int FirstPause = 10;
    private const int MaxPauseShift = 6;

    /// <summary>Answers one fault; false where it must be tried again later: at its time, or when its fetch is done.</summary>
    private bool TryAnswer(ref UffdFault fault, PageScratch scratch)
    {
        if (Find(fault.Address) is not { } region)
        {
            if (HasMovedFrom(fault.Address)) return true;
            Fail($"The address 0x{fault.Address:x} of a page fault is not in any of the VM's {_regions.Length} mappings.");
            _ = Userfaultfd.TryPoison(_uffd, fault.Address & ~(HostPage.Size - 1), HostPage.Size);
            _counters->Poisoned++;
            return true;
        }

        var start = fault.Address & ~(region.Unit - 1);
        if ((fault.Flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_WP) != 0) return TryUnprotect(region, start, ref fault, scratch);
        if ((fault.Flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_MINOR) != 0) return TryContinue(region, start, ref fault, scratch);
        // Whatever brings the page in: it is touched.
        _policy.Recorder?.Touch(region.Offset + (start - region.Base), region.Unit);
        if (IsToHold(region, start, ref fault)) return false;
        if (fault.IsHeld)
        {
            // It came with its slice, which has woken who waits; a thread that went to sleep since finds it too.
            _ = Userfaultfd.TryWake(_uffd, start, region.Unit);
            return true;
        }

        var hasWindow = _policy.Window > region.Unit && !IsWrite(fault.Flags);
        if (!fault.IsFetched && MustFetch(region, start, hasWindow, ref fault)) return false;
        return (hasWindow && TryBringWindow(region, start, scratch)) || TryBring(region, start, ref fault, scratch);
    }

    /// <summary>Whether what a fault needs is not in memory, and is being fetched now while other faults are answered.</summary>
    private bool MustFetch(UffdVmRegion region, ulong start, bool hasWindow, ref UffdFault fault)
    {
        if (Fetches is not { } fetches) return false;
        var page = region.PageOf(start);
        // It will be zero, or is there.
        if (region.Unit == HostPage.Size && (_state.Removed.IsSet(page) || _state.Filled.IsSet(page))) return false;
        var (from, to) = hasWindow ? WindowOf(region, start) : (start, start + region.Unit);
        var offset = region.Offset + (from - region.Base);
        if (_source.IsReady(offset, to - from)) return false;
        fault.Fetch = fetches.TryStart(offset, to - from);
        // As many as may be are on their way: there is room in a moment.
        if (fault.Fetch is null) fault.Due = Stopwatch.GetTimestamp() + s_millisecond;
        return true;
    }

    /// <summary>A removal waits to be read, or whoever removed has not run since: reads it and gives way. False where enough was tried for now.</summary>
    private bool TryAgain(ref UffdFault fault, ref int tries, PageScratch scratch)
    {
        ReadEvents(scratch);
        if (!_gone && _isHeld) tries = Patience;
        if (_gone || ++tries < (fault.Removals == 0 ? Patience : ShortPatience))
        {
            if (!_gone) Thread.Yield();
            return true;
        }

        fault.Due = Stopwatch.GetTimestamp() + (s_millisecond << Math.Min(fault.Removals++, MaxRemovalShift));
        return false;
    }

    /// <summary>Fills the page that a fault waits for, piece by piece where it is not one piece.</summary>
    private bool TryBring(UffdVmRegion region, ulong start, ref UffdFault fault, PageScratch scratch)
    {
        var end = start + region.Unit;
        var step = region.Unit;
        var tries = 0;
        var copied = 0UL;
        var present = false;
        var mode = ModeFor(region, start, fault.Flags);
        for (var at = start; at < end;)
        {
            var error = Fill(region, at, end - at, mode, scratch, out var done, out var zero, out var ofSource);
            var from = at;
            at += done;
            if (!zero) copied += done;
            if (at == end) CountAnswer(copied, present);
            NoteFilled(region.PageOf(from), done / HostPage.Size);
            if (error == 0 || (error == Errno.EAGAIN && done > 0)) continue;
            // Where this process has no memory to make a page in, the source is not to blame.
            switch (ofSource && error != Errno.ENOMEM ? Errno.EIO : error)
            {
                case Errno.EAGAIN:
                    if (!TryAgain(ref fault, ref tries, scratch)) return false;
                    // Where it was moved its threads were woken.
                    if (_gone || Find(at) != region) return true;
                    break;
                case Errno.EINVAL when region.TryWiden() || end - start != region.Unit:
                    // The pages are as large as the VMM says; now the whole one is tried.
                    return TryBring(region, fault.Address & ~(region.Unit - 1), ref fault, scratch);
                case Errno.EEXIST when IsPoolEmpty(region, start):
                    FailForMemory(region, at, Errno.ENOMEM, ref fault);
                    return false;
                case Errno.EEXIST:
                    // Somebody was faster; who waits may have gone to sleep all the same.
                    step = HostPage.Size;
                    _ = Userfaultfd.TryWake(_uffd, at, step);
                    present = true;
                    if (at + step == end) CountAnswer(copied, present);
                    _state.Filled.Set(region.PageOf(at));
                    at += step;
                    break;
                case Errno.EINVAL when step != region.Unit:
                    // The page that was there is a huge one and fills the whole step.
                    CountAnswer(copied, present);
                    _state.Filled.Set(region.PageOf(start), region.Unit / HostPage.Size);
                    _ = Userfaultfd.TryWake(_uffd, start, region.Unit);
                    at = end;
                    break;
                case Errno.ENOENT:
                    // The range was unregistered since; the kernel has woken its waiters.
                    _counters->Failed++;
                    return true;
                case Errno.ESRCH:
                    _gone = true;
                    return true;
                case Errno.ENOMEM or Errno.ENOSPC:
                    FailForMemory(region, at, error, ref fault);
                    return false;
                default:
                    return !TryLater(region, at, end - at, error, ofSource || error == Errno.EFAULT, ref fault);
            }
        }

        return true;
    }

    /// <summary>Counts a fault whose page is complete, before the page is noted as present: figures without a missing page have every fault.</summary>
    private void CountAnswer(ulong copied, bool present)
    {
        if (UffdDebug.IsArmed) UffdDebug.BeforeCount();
        _counters->FaultBytes += (long)copied;
        if (copied > 0) _counters->Copied++;
        else if (present) _counters->Present++;
        else _counters->Zero++;
    }

    /// <summary>
    /// Whether a huge page that the kernel says is there is so only because there is none to be had: hugetlb answers EEXIST also where
    /// the pool is empty (<c>hugetlb_mfill_atomic_pte</c>). What came before and was not removed is there.
    /// </summary>
    private bool IsPoolEmpty(UffdVmRegion region, ulong start)
    {
        if (region.Unit == HostPage.Size) return false;
        var page = region.PageOf(start);
        if ((_state.Filled.IsSet(page) && !_state.Removed.IsSet(page)) || HugePages.Available(region.Unit) > 0) return false;
        // A VMM may call small pages large ones; hugetlb knows no ZEROPAGE, and of others this one is there.
        return Userfaultfd.TryZero(_uffd, start, HostPage.Size, 0, out _) == Errno.EINVAL;
    }

    private void FailForMemory(UffdVmRegion region, ulong at, int error, ref UffdFault fault)
    {
        fault.Due = Stopwatch.GetTimestamp() + (s_millisecond * FirstPause);
        // Said once for each fault, however long it waits.
        if (fault.IsShort) return;
        fault.IsShort = true;
        Fail($"The host has no page for 0x{at:x} ({Errno.Name(error)}); trying again.{(region.Unit > HostPage.Size ? " Enlarge the pool of huge pages." : "")}");
    }

    /// <summary>What follows where a page cannot be filled: another try, and in the end what was ordered. True where it is to be tried again.</summary>
    private bool TryLater(UffdVmRegion region, ulong at, ulong length, int error, bool ofSource, ref UffdFault fault)
    {
        if (ofSource)
        {
            _counters->SourceErrors++;
            var now = Stopwatch.GetTimestamp();
            if (fault.Attempts == 0) fault.FailingSince = now;
            var left = fault.FailingSince + (long)(_policy.SourceTimeout.TotalSeconds * Stopwatch.Frequency) - now;
            if (left > 0)
            {
                // The last try is at the end of that time.
                fault.Due = now + Math.Min(left, s_millisecond * FirstPause << Math.Min(fault.Attempts++, MaxPauseShift));
                // The next try may wait for the disk again.
                fault.IsFetched = false;
                return true;
            }
        }

        var what = ofSource
            ? $"{_source.Name} cannot be read at offset 0x{region.Offset + (at - region.Base):x}{(error == Errno.EFAULT ? "; was it truncated?" : $" ({Errno.Name(error)}).")}"
            : $"Filling the page 0x{at:x} failed: {Errno.Name(error)}.";
        if (OnError == UffdOnError.Stop)
        {
            Fail($"{what} The handler stops, as OnError says.");
            Verdict = UffdOnError.Stop;
            _counters->Failed++;
        }
        else if (OnError != UffdOnError.Kill || !TryKill(ref what, "as OnError says"))
        {
            Poison(what, at, length, mayKill: ofSource && OnError == UffdOnError.Poison);
        }

        return false;
    }

    /// <summary>Kills the VMM and says so; where it cannot, adds why to what is to be said.</summary>
    private bool TryKill(ref string what, string why)
    {
        var failure = Kill is null ? "The VMM is not known." : Kill();
        if (failure is null)
        {
            Fail($"{what} The VMM is killed, {why}.");
            _counters->Failed++;
            return true;
        }

        what = $"{what} {failure}";
        return false;
    }

    /// <summary>Has a thread that touches a page get an error. A kernel before 6.6 cannot: there the VMM is killed, since it would wait for ever.</summary>
    private void Poison(string what, ulong at, ulong length, bool mayKill)
    {
        var error = Userfaultfd.TryPoison(_uffd, at, length);
        if (error == Errno.EINVAL && mayKill && TryKill(ref what, "since this kernel cannot poison a page (Linux 6.6 and later can)")) return;
        Fail(error is 0 or Errno.EEXIST
            ? $"{what} The page 0x{at:x} of the VM is poisoned: a thread that touches it gets SIGBUS."
            : $"{what} The page 0x{at:x} of the VM could not be poisoned either ({Errno.Name(error)}): a thread that touches it waits until the VM ends.");
        _counters->Poisoned++;
    }

    /// <summary>The page is in the page cache and only not mapped yet: maps it.</summary>
    private bool TryContinue(UffdVmRegion region, ulong start, ref UffdFault fault, PageScratch scratch)
    {
        var mode = ModeFor(region, start, fault.Flags);
        for (var tries = 0; ;)
        {
            switch (Userfaultfd.TryContinue(_uffd, start, region.Unit, mode))
            {
                case 0:
                    _counters->Continued++;
                    NoteFilled(region.PageOf(start), region.Unit / HostPage.Size);
                    return true;
                case Errno.EAGAIN:
                    if (!TryAgain(ref fault, ref tries, scratch)) return false;
                    if (_gone) return true;
                    break;
                case Errno.EINVAL when region.TryWiden():
                    return TryContinue(region, fault.Address & ~(region.Unit - 1), ref fault, scratch);
                case Errno.EINVAL when mode != 0:
                    // A kernel before 6.4 maps it only so that it can be written.
                    OpenPages(region, start);
                    mode = 0;
                    break;
                case Errno.EEXIST:
                    _ = Userfaultfd.TryWake(_uffd, start, region.Unit);
                    _counters->Present++;
                    return true;
                case Errno.ESRCH:
                    _gone = true;
                    return true;
                default:
                    // Not in the page cache any more: whoever waits finds it missing when woken, and that is another fault.
                    _ = Userfaultfd.TryWake(_uffd, start, region.Unit);
                    _counters->Failed++;
                    return true;
            }
        }
    }
}
