using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>
/// Accesses to direct memory that a hand-over to a page-fault handler must know of, since they take longer than it could guess: long
/// copies, which it waits for piece by piece, and leases of spans, for which it is refused.
/// </content>
public abstract unsafe partial class VolatileMemory
{
    private int _copying;
    private int _leased;

    /// <summary>Whether a span over the memory is in use.</summary>
    private protected bool IsLeased => Volatile.Read(ref _leased) > 0;

    /// <summary>Begins a lease of a span; false where the memory is not direct.</summary>
    internal bool TryBeginLease() => TryBegin(ref _leased);

    internal void EndLease() => Interlocked.Decrement(ref _leased);

    /// <summary>Waits for the pieces of long copies that began before the memory was guarded.</summary>
    private protected void WaitForCopies(CancellationToken cancellation)
    {
        var wait = default(SpinWait);
        while (Volatile.Read(ref _copying) > 0)
        {
            cancellation.ThrowIfCancellationRequested();
            wait.SpinOnce();
        }
    }

    /// <summary>Copies, as far as the memory stays direct; returns how many bytes that were.</summary>
    private nuint CopyWhileDirect(byte* destination, byte* source, nuint length)
    {
        nuint done = 0;
        while (done < length && IsDirect && TryBegin(ref _copying))
        {
            var piece = Math.Min(VolatileCopy.Piece, length - done);
            Mman.Copy(destination + done, source + done, piece);
            Interlocked.Decrement(ref _copying);
            done += piece;
        }

        return done;
    }

    private bool TryBegin(ref int count)
    {
        // Either a hand-over sees this one, or this one sees that the memory is guarded.
        Interlocked.Increment(ref count);
        if (IsDirect) return true;
        Interlocked.Decrement(ref count);
        return false;
    }
}
