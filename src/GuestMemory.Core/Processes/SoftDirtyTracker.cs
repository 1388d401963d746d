using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>Tells what the kernel marked as soft-dirty. See <see cref="ProcessTrackingSource.SoftDirty"/>.</summary>
internal sealed class SoftDirtyTracker : SampledDirtyTracker
{
    private readonly SafeFileHandle _marks;

    private SoftDirtyTracker(TrackedRange range, SafeFileHandle pagemap, SafeFileHandle marks)
        : base(range, pagemap) => _marks = marks;

    public override ProcessTrackingSource Source => ProcessTrackingSource.SoftDirty;

    public static SoftDirtyTracker Begin(TrackedRange range, CancellationToken cancellation)
    {
        if (range.PageSize != HostPage.Size) throw new GuestMemoryException(GuestMemoryError.SoftDirtyUnsupported, $"The kernel does not mark huge pages as soft-dirty: process {range.ProcessId} has pages of 0x{range.PageSize:x} bytes at 0x{range.Address:x}.") { Address = range.Address };
        if (!Pagemap.HasSoftDirty()) throw new GuestMemoryException(GuestMemoryError.SoftDirtyUnsupported, "The kernel marks no page as soft-dirty, tried on one of this process: it is built without CONFIG_MEM_SOFT_DIRTY.");
        return Begin(range, "clear_refs", FileAccess.Write, (pagemap, marks) => new SoftDirtyTracker(range, pagemap, marks!), tracker =>
        {
            cancellation.ThrowIfCancellationRequested();
            tracker.Clear();
        });
    }

    protected override bool Examine(int piece, ulong address, ReadOnlySpan<ulong> entries)
    {
        for (var i = 0; i < entries.Length; i++)
        {
            if ((entries[i] & Pagemap.SoftDirty) != 0) Mark(address + ((ulong)i * PageSize));
        }

        return true;
    }

    protected override void Clear()
    {
        try
        {
            Pagemap.ResetSoftDirty(_marks);
        }
        catch (IOException exception)
        {
            throw exception.HResult == Errno.ESRCH ? Ended(exception)
                : new GuestMemoryException(GuestMemoryError.SyscallFailed, $"The soft-dirty marks of process {ProcessId} cannot be reset: {exception.Message}", exception);
        }
    }

    private protected override void Release()
    {
        base.Release();
        _marks.Dispose();
    }
}
