using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Where a VMM moved its memory to (<c>mremap(2)</c>), in its order, as it stands in a VM's state: the mapping list is that of the
/// hand-over. Written by the process that serves the VM; every process that has the state may read it.
/// </summary>
/// <param name="start">A page of the state, zero at first.</param>
internal sealed unsafe class UffdMoves(ulong* start)
{
    /// <summary>How many moves there is room for.</summary>
    public const int Capacity = 170;

    /// <summary>The moves. What is no range of whole pages, which only a process that is not to be trusted writes, is left out.</summary>
    public IEnumerable<(ulong From, ulong To, ulong Length)> All
    {
        get
        {
            var count = Count;
            for (var i = 0; i < count; i++)
            {
                var move = At(i);
                if (HostPage.IsAligned(move.From | move.To | move.Length, HostPage.Size) && move.From + move.Length > move.From && move.To + move.Length > move.To) yield return move;
            }
        }
    }

    private int Count => (int)Math.Min(Volatile.Read(ref *start), Capacity);

    /// <summary>Whether a move is the last one: a process noted it that died before it was done with the event.</summary>
    public bool EndWith(ulong from, ulong to, ulong length) => Count is var count and > 0 && At(count - 1) == (from, to, length);

    /// <summary>Notes a move; false where there is no room.</summary>
    public bool TryAdd(ulong from, ulong to, ulong length)
    {
        var count = Count;
        if (count == Capacity) return false;
        var place = start + 1 + (3 * count);
        (place[0], place[1], place[2]) = (from, to, length);
        Volatile.Write(ref *start, (ulong)count + 1);
        return true;
    }

    private (ulong From, ulong To, ulong Length) At(int index) => (start[1 + (3 * index)], start[2 + (3 * index)], start[3 + (3 * index)]);
}
