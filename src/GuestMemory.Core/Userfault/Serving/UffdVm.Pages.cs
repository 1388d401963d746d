using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>Answering a fault.</content>
internal sealed unsafe partial class UffdVm
{
    // How often a fault is tried again at once while a removal is under way, before the other VMs get their turn.
    private const int Patience = 1000;

    // How often a source is asked in all: after 10, 20, 40, 80 and 160 ms.
    private const int Tries = 6;
    private const int FirstPause = 10;

    /// <summary>Answers one fault; false where it must be tried again later.</summary>
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

        var start = fault.Address & ~(region.PageSize - 1);
        if ((fault.Flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_WP) != 0) return TryUnprotect(region, start, scratch);
        if ((fault.Flags & Userfaultfd.UFFD_PAGEFAULT_FLAG_MINOR) != 0) return TryContinue(region, start, ModeFor(region, start, fault.Flags), scratch);
        if (IsHeld(region, start))
        {
            fault.IsHeld = true;
            _counters->Deferred++;
            return true;
        }

        _policy.Recorder?.Touch(region.Offset + (start - region.Base), region.PageSize);
        return (_policy.Window > region.PageSize && !IsWrite(fault.Flags) && TryBringWindow(region, start, scratch)) || TryBring(region, start, ref fault, scratch);
    }

    /// <summary>Fills the page that a fault waits for, piece by piece where it is not one piece.</summary>
    private bool TryBring(UffdVmRegion region, ulong start, ref UffdFault fault, PageScratch scratch)
    {
        var end = start + region.PageSize;
        var step = region.PageSize;
        var patience = Patience;
        var copied = 0UL;
        var present = false;
        var mode = ModeFor(region, start, fault.Flags);
        for (var at = start; at < end;)
        {
            var error = Fill(region, at, end - at, mode, scratch, out var done, out var zero, out var ofSource);
            at += done;
            if (!zero) copied += done;
            if (error == 0 || (error == Errno.EAGAIN && done > 0)) continue;
            // Where this process has no memory to make a page in, the source is not to blame.
            switch (ofSource && error != Errno.ENOMEM ? Errno.EIO : error)
            {
                case Errno.EAGAIN:
                    // A removal waits to be read, or whoever removed has not run since: read it, give way, look again.
                    ReadEvents(scratch);
                    // Where it was moved its threads were woken.
                    if (_gone || Find(at) != region) return true;
                    if (--patience == 0) return false;
                    Thread.Yield();
                    break;
                case Errno.EEXIST when IsPoolEmpty(region, start):
                    FailForMemory(region, at, Errno.ENOMEM);
                    fault.Due = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * FirstPause);
                    return false;
                case Errno.EEXIST:
                    // Somebody was faster; who waits may have gone to sleep all the same.
                    step = HostPage.Size;
                    _ = Userfaultfd.TryWake(_uffd, at, step);
                    _state.Filled.Set(region.PageOf(at));
                    present = true;
                    at += step;
                    break;
                case Errno.EINVAL when step != region.PageSize:
                    // The page that was there is a huge one and fills the whole step.
                    _state.Filled.Set(region.PageOf(start), region.PageSize / HostPage.Size);
                    _ = Userfaultfd.TryWake(_uffd, start, region.PageSize);
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
                    FailForMemory(region, at, error);
                    return false;
                default:
                    return !TryLater(region, at, end - at, error, ofSource || error == Errno.EFAULT, ref fault);
            }
        }

        _counters->FaultBytes += (long)copied;
        if (copied > 0) _counters->Copied++;
        else if (present) _counters->Present++;
        else _counters->Zero++;
        return true;
    }

    /// <summary>
    /// Whether a huge page that the kernel says is there is so only because there is none to be had: hugetlb answers EEXIST also where
    /// the pool is empty (<c>hugetlb_mfill_atomic_pte</c>). What came before and was not removed is there.
    /// </summary>
    private bool IsPoolEmpty(UffdVmRegion region, ulong start)
    {
        if (region.PageSize == HostPage.Size) return false;
        var page = region.PageOf(start);
        if ((_state.Filled.IsSet(page) && !_state.Removed.IsSet(page)) || HugePages.Available(region.PageSize) > 0) return false;
        // A VMM may call small pages large ones; hugetlb knows no ZEROPAGE, and of others this one is there.
        return Userfaultfd.TryZero(_uffd, start, HostPage.Size, 0, out _) == Errno.EINVAL;
    }

    private void FailForMemory(UffdVmRegion region, ulong at, int error) =>
        Fail($"The host has no page for 0x{at:x} ({Errno.Name(error)}); trying again.{(region.PageSize > HostPage.Size ? " Enlarge the pool of huge pages." : "")}");

    /// <summary>What follows where a page cannot be filled: another try, and in the end what was ordered. True where it is to be tried again.</summary>
    private bool TryLater(UffdVmRegion region, ulong at, ulong length, int error, bool ofSource, ref UffdFault fault)
    {
        if (ofSource)
        {
            _counters->SourceErrors++;
            if (++fault.Attempts < Tries)
            {
                fault.Due = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * FirstPause << (fault.Attempts - 1));
                return true;
            }
        }

        var what = ofSource
            ? $"{_source.Name} cannot be read at offset 0x{region.Offset + (at - region.Base):x}{(error == Errno.EFAULT ? "; was it truncated?" : $" ({Errno.Name(error)}).")}"
            : $"Filling the page 0x{at:x} failed: {Errno.Name(error)}.";
        if (_policy.OnError == UffdOnError.Stop)
        {
            Fail($"{what} The handler stops, as OnError says.");
            MustStop = true;
            _counters->Failed++;
        }
        else if (_policy.OnError != UffdOnError.Kill || !TryKill(ref what, "as OnError says"))
        {
            Poison(what, at, length, mayKill: ofSource && _policy.OnError == UffdOnError.Poison);
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
    private bool TryContinue(UffdVmRegion region, ulong start, ulong mode, PageScratch scratch)
    {
        var error = Userfaultfd.TryContinue(_uffd, start, region.PageSize, mode);
        switch (error)
        {
            case 0:
                _counters->Continued++;
                Came(region.PageOf(start), region.PageSize / HostPage.Size);
                return true;
            case Errno.EAGAIN:
                ReadEvents(scratch);
                return _gone;
            case Errno.EINVAL when mode != 0:
                // A kernel before 6.4 maps it only so that it can be written.
                OpenPages(region, start);
                return TryContinue(region, start, mode: 0, scratch);
            case Errno.EEXIST:
                _ = Userfaultfd.TryWake(_uffd, start, region.PageSize);
                _counters->Present++;
                return true;
            case Errno.ESRCH:
                _gone = true;
                return true;
            default:
                // Not in the page cache any more: whoever waits finds it missing when woken, and that is another fault.
                _ = Userfaultfd.TryWake(_uffd, start, region.PageSize);
                _counters->Failed++;
                return true;
        }
    }

    /// <summary>
    /// Fills missing pages from an address on with one ioctl: as many as are alike and lie together, at most <paramref name="length"/>
    /// bytes. Of a large page it is all or, where small ones were there before, the rest.
    /// </summary>
    /// <param name="region">Where they lie.</param>
    /// <param name="at">The first address.</param>
    /// <param name="length">The bytes at most.</param>
    /// <param name="mode">UFFDIO_COPY_MODE flags.</param>
    /// <param name="scratch">The calling thread's.</param>
    /// <param name="done">The bytes that came, also where an error ended it.</param>
    /// <param name="zero">Whether they are zeros, and not out of the source.</param>
    /// <param name="ofSource">Whether the error is one of the source.</param>
    private int Fill(UffdVmRegion region, ulong at, ulong length, ulong mode, PageScratch scratch, out ulong done, out bool zero, out bool ofSource)
    {
        done = 0;
        var error = Locate(region, at, length, scratch, out var run);
        zero = run.Data is null && error == 0;
        ofSource = error != 0;
        if (ofSource) return error;
        error = zero ? Zero(at, run.Length, mode, scratch, out var copied) : Userfaultfd.TryCopy(_uffd, at, run.Data, run.Length, mode, out copied);
        if (error == 0) done = run.Length;
        else if (copied > 0) done = (ulong)copied;
        // Before any further event is read.
        if (done > 0) Came(region.PageOf(at), done / HostPage.Size);
        return error;
    }

    private void Came(ulong page, ulong count)
    {
        _state.Filled.Set(page, count);
        if (_protection != 0) _state.Removing.Reset(page, count);
    }

    private int Locate(UffdVmRegion region, ulong at, ulong length, PageScratch scratch, out PageRunData run)
    {
        var page = region.PageOf(at);
        var error = LocateOnce(region, at, _state.Removed.Run(page, length / HostPage.Size, out var removed) * HostPage.Size, removed, scratch, out run);
        if (error != 0 || region.PageSize == HostPage.Size) return error;
        // A large page is filled whole or not at all.
        var whole = run.Length & ~(region.PageSize - 1);
        if (whole == 0) return Assemble(region, at, Math.Min(length, region.PageSize), scratch, out run);
        run = new PageRunData(run.Data, whole);
        return 0;
    }

    private int LocateOnce(UffdVmRegion region, ulong at, ulong length, bool removed, PageScratch scratch, out PageRunData run)
    {
        run = new PageRunData(null, length);
        return removed ? 0 : _source.Locate(region.Offset + (at - region.Base), length, scratch, out run);
    }

    /// <summary>Puts a page together that is zero in part, or does not lie in one piece.</summary>
    private int Assemble(UffdVmRegion region, ulong at, ulong length, PageScratch scratch, out PageRunData run)
    {
        var page = scratch.Page((nuint)length);
        run = new PageRunData(page, length);
        if (page is null) return Errno.ENOMEM;
        for (ulong done = 0; done < length;)
        {
            var like = _state.Removed.Run(region.PageOf(at + done), (length - done) / HostPage.Size, out var removed) * HostPage.Size;
            var error = LocateOnce(region, at + done, like, removed, scratch, out var piece);
            if (error != 0) return error;
            if (piece.Data is null) new Span<byte>(page + done, (int)piece.Length).Clear();
            else
            {
                // A touch of a page that cannot be read would end this process.
                var count = ProcessVm.TryRead(Environment.ProcessId, page + done, (nint)piece.Data, (nuint)piece.Length);
                if (count < 0 || (ulong)count != piece.Length) return Errno.EFAULT;
            }

            done += piece.Length;
        }

        return 0;
    }

    private int Zero(ulong start, ulong length, ulong mode, PageScratch scratch, out long done)
    {
        // Only a copy can be write-protected, and huge pages know no ZEROPAGE.
        if ((mode & Userfaultfd.UFFDIO_COPY_MODE_WP) == 0)
        {
            var error = Userfaultfd.TryZero(_uffd, start, length, mode, out done);
            if (error != Errno.EINVAL) return error;
        }

        done = 0;
        var zeros = scratch.Zeros((nuint)length);
        return zeros is null ? Errno.ENOMEM : Userfaultfd.TryCopy(_uffd, start, zeros, length, mode, out done);
    }
}
