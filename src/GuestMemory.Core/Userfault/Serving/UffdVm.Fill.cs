using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>One ioctl that fills pages, for a fault or ahead of any.</content>
internal sealed unsafe partial class UffdVm
{
    /// <summary>
    /// Fills missing pages from an address on with one ioctl: as many as are alike and lie together, at most <paramref name="length"/>
    /// bytes. Of a large page it is all or, where small ones were there before, the rest. The caller counts what came, and notes it
    /// (<see cref="NoteFilled"/>).
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
        return error;
    }

    /// <summary>Notes pages that came, once they are counted and before any further event is read.</summary>
    private void NoteFilled(ulong page, ulong count)
    {
        if (count == 0) return;
        _state.Filled.Set(page, count);
        if (_protection != 0) _state.Removing.Reset(page, count);
    }

    private int Locate(UffdVmRegion region, ulong at, ulong length, PageScratch scratch, out PageRunData run)
    {
        var page = region.PageOf(at);
        var error = LocateOnce(region, at, _state.Removed.Run(page, length / HostPage.Size, out var removed) * HostPage.Size, removed, scratch, out run);
        var unit = region.Unit;
        if (error != 0 || unit == HostPage.Size) return error;
        // A large page is filled whole or not at all.
        var whole = run.Length & ~(unit - 1);
        if (whole == 0) return Assemble(region, at, Math.Min(length, unit), scratch, out run);
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
