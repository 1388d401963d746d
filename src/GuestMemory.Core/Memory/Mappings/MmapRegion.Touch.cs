using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>
/// Guarded memory that is touched by this process's code once its pages are there: atomic operations, and values that must not tear. It is
/// brief and never a wait for a page, so that neither a collection nor a release waits for one with it.
/// </content>
/// <remarks>
/// Between the moment in which a page is brought in and the touch, this process takes it away neither by a release nor by
/// <see cref="ChangeContent"/>. Another process can: one that shares the memory and punches a hole into it, or shortens the file, which is
/// why files are touched by atomic operations alone. The touch then waits for the page in managed code, or ends in a signal; nothing
/// shorter than a signal handler helps against it.
/// </remarks>
public sealed unsafe partial class MmapRegion
{
    private readonly Lock _changing = new();
    private ContentChange? _change;
    private int _changes;
    private int _touching;

    /// <inheritdoc/>
    internal override bool CanTouch => !_canShrink;

    /// <summary>
    /// Changes what the memory holds otherwise than by writing to it, with no touch under way, and marks the range as written.
    /// </summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">How many; the range lies in the memory.</param>
    /// <param name="change">Is given the address of the first byte; returns 0 or the error number.</param>
    /// <returns>What <paramref name="change"/> returned.</returns>
    /// <exception cref="GuestMemoryException">RegionDisposed.</exception>
    internal int ChangeContent(ulong offset, ulong length, Func<nint, int> change)
    {
        int? error;
        do
        {
            var provider = Provider;
            provider?.BeginChange(this, offset, length);
            try
            {
                error = WithoutTouches<int?>(offset, length, address => Provider == provider ? change(address) : null);
            }
            finally
            {
                provider?.EndChange();
            }
        }
        while (error is null);

        // Whatever else went wrong may have done so half-way.
        if (error != Errno.EINVAL) Written(offset, length);
        return error.Value;
    }

    /// <summary>Does something to the pages of a range with no touch and no other such change under way.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">How many; the range lies in the memory.</param>
    /// <param name="change">Is given the address of the first byte. It must not wait for who touches the memory.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed.</exception>
    internal T WithoutTouches<T>(ulong offset, ulong length, Func<nint, T> change)
    {
        lock (_changing)
        {
            using var lease = Lease();
            // Either a touch sees this change, or this change sees the touch.
            Interlocked.Exchange(ref _change, new ContentChange(offset, length));
            try
            {
                SpinWait.SpinUntil(() => Volatile.Read(ref _touching) == 0);
                return change(lease.Address + (nint)offset);
            }
            finally
            {
                Interlocked.Increment(ref _changes);
                Volatile.Write(ref _change, null);
            }
        }
    }

    /// <inheritdoc/>
    private protected override nint BeginTouch(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = null;
        error = TryBeginTouch(offset, (nuint)length, access.HasWrite());
        return error == 0 ? (nint)(HostAddress + offset) : 0;
    }

    /// <inheritdoc/>
    private protected override void EndTouch(nint address, ulong length, object? state) => EndTouch();

    /// <inheritdoc/>
    private protected override GuestMemoryException NotTouchable(ulong offset, MemoryProtection access, int error) => NotAccessibleAt(
        $"offset 0x{offset:x} of the region", offset, access, error, GuardedCopy.Failure("madvise", error, $"Bringing in the page at host address 0x{HostAddress + offset:x}"));

    /// <summary>Brings in the pages of bytes and keeps them there until <see cref="EndTouch()"/>; returns 0, or the error number and nothing is to be ended.</summary>
    private int TryBeginTouch(ulong offset, nuint length, bool write)
    {
        while (true)
        {
            var changes = Volatile.Read(ref _changes);
            using (var lease = Lease())
            {
                var error = GuardedCopy.TryPopulate((byte*)lease.Address + offset, length, write);
                if (error != 0) return error;
            }

            // Either a release or a change sees this touch, or this touch sees it.
            Interlocked.Increment(ref _touching);
            if (!IsDisposed && !IsChanging(offset, length) && Volatile.Read(ref _changes) == changes) return 0;
            EndTouch();
            var wait = default(SpinWait);
            while (!IsDisposed && IsChanging(offset, length)) wait.SpinOnce();
            // Not for a lease to find out: the caller may have one, with which the mapping stays.
            if (IsDisposed) throw RegionDisposed();
        }
    }

    private void EndTouch() => Interlocked.Decrement(ref _touching);

    private bool IsChanging(ulong offset, ulong length) => Volatile.Read(ref _change) is { } change && offset < change.Offset + change.Length && change.Offset < offset + length;

    /// <summary>A range whose content is about to change.</summary>
    private sealed record ContentChange(ulong Offset, ulong Length);
}
