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

    /// <summary>Work on bytes where they lie, which is done when it returns.</summary>
    internal delegate void Use(byte* bytes, int length);

    /// <summary>
    /// Does a piece of work on direct memory where it lies. It counts like a piece of a long copy: a hand-over waits for it, so it is to
    /// be short. False where the memory is not direct; then nothing was done.
    /// </summary>
    /// <exception cref="GuestMemoryException">RegionDisposed: what the work saw may not have been the memory.</exception>
    internal bool TryUse(ulong offset, int length, Use use)
    {
        if (!Protection.Allows(MemoryProtection.Read) || !TryBegin(ref _copying)) return false;
        try
        {
            use(_start + offset, length);
        }
        finally
        {
            Interlocked.Decrement(ref _copying);
        }

        Leave();
        return true;
    }

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
