using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>A VMM that changes the layout of its memory, and has the events of that reported.</content>
internal sealed unsafe partial class UffdVm
{
    // Children that cannot be told to fail: open, they wait; closed, they would read zeros.
    private readonly List<SafeDescriptor> _children = [];

    /// <summary>The VMM moved a range: its pages are served where they lie now.</summary>
    private void Move(ulong from, ulong to, ulong length)
    {
        if (_state.Moves.EndWith(from, to, length)) return;
        // What lay there is gone.
        MarkRemoved(to, to + length);
        if (_state.Moves.TryAdd(from, to, length)) SetRegions(UffdVmRegion.Of(_mappings, _state.Moves));
        else if (!IsOrderedToStop($"The VMM moved its memory more than {UffdMoves.Capacity} times: 0x{length:x} bytes at 0x{to:x} are not served."))
            Poison(Error!, to, length, mayKill: true);
        // Threads that wait at the old addresses find nothing there.
        _ = Userfaultfd.TryWake(_uffd, from, length);
    }

    /// <summary>Whether an address was left by a move, so that the fault of a thread that waited there is over.</summary>
    private bool HasMovedFrom(ulong address) => _state.Moves.All.Any(move => address - move.From < move.Length);

    /// <summary>
    /// The VMM forked, and no handler serves the child. It has the pages that had come; the others are poisoned, since they would read
    /// as zeros once its userfaultfd is closed.
    /// </summary>
    private void RefuseChild(int number)
    {
        var child = new SafeDescriptor(number);
        if (TryPoisonMissing(child) == Errno.EINVAL) _children.Add(child);
        else child.Dispose();
        _ = IsOrderedToStop(_children.Contains(child)
            ? "The VMM forked, and its child is not served: it waits for ever where it touches a page that had not come (this kernel cannot poison one)."
            : "The VMM forked, and its child is not served: it gets SIGBUS where it touches a page that had not come.");
    }

    private int TryPoisonMissing(SafeDescriptor child)
    {
        foreach (var region in _regions)
        {
            var end = region.FirstPage + region.PageCount;
            for (var page = _state.Filled.Next(region.FirstPage, end, set: false); page < end; page = _state.Filled.Next(page, end, set: false))
            {
                var count = Math.Min(_state.Filled.Next(page, end, set: true), end) - page;
                var like = _state.Removed.Run(page, count, out var removed);
                var error = 0;
                // Zero is what a removed page is.
                var done = removed ? like : Poison(child, region, page, like, out error);
                if (done == 0) return error;
                page += done;
            }
        }

        return 0;
    }

    /// <summary>Poisons pages; those that are there are passed over. How many were done.</summary>
    private static ulong Poison(SafeDescriptor child, UffdVmRegion region, ulong page, ulong count, out int error)
    {
        var at = region.AddressOf(page);
        error = Userfaultfd.TryPoison(child.Number, at, count * HostPage.Size, out var done);
        if (done > 0) return (ulong)done / HostPage.Size;
        if (error == 0) return count;
        // The rest of a page of the VM's, which may be a large one. What is not registered (any more) is no page of the image.
        return error is Errno.EEXIST or Errno.ENOENT ? Math.Min(count, (region.PageSize - (at - region.Base & (region.PageSize - 1))) / HostPage.Size) : 0;
    }

    /// <summary>Says what is wrong with a VM, and does what is ordered then but poison a page; true where that ends the VM or its handler.</summary>
    private bool IsOrderedToStop(string what)
    {
        if (OnError == UffdOnError.Kill && TryKill(ref what, "as OnError says")) return true;
        var stops = OnError == UffdOnError.Stop;
        Fail(stops ? $"{what} The handler stops, as OnError says." : what);
        if (stops) Verdict = UffdOnError.Stop;
        return stops;
    }
}
