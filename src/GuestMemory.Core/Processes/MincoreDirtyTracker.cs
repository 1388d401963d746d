using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>Tells which pages became present. See <see cref="ProcessTrackingSource.Mincore"/>.</summary>
internal sealed class MincoreDirtyTracker : SampledDirtyTracker
{
    private readonly bool[]?[] _isThere;

    private MincoreDirtyTracker(TrackedRange range, SafeFileHandle pagemap)
        : base(range, pagemap) => _isThere = new bool[]?[PieceCount];

    public override ProcessTrackingSource Source => ProcessTrackingSource.Mincore;

    public static MincoreDirtyTracker Begin(TrackedRange range, Action<ulong>? progress, CancellationToken cancellation) =>
        Begin(range, null, FileAccess.Read, (pagemap, _) => new MincoreDirtyTracker(range, pagemap), tracker => tracker.LookFirst(progress, cancellation));

    protected override bool Examine(int piece, ulong address, ReadOnlySpan<ulong> entries)
    {
        var before = _isThere[piece] ??= new bool[entries.Length];
        for (var i = 0; i < entries.Length; i++)
        {
            var isThere = entries[i] >= Pagemap.Swapped;
            if (isThere && !before[i]) Mark(address + ((ulong)i * PageSize));
            before[i] = isThere;
        }

        return true;
    }
}
