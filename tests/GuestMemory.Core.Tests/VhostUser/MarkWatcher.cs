namespace GuestMemory.Core.Tests;

/// <summary>A tracker that does something at each mark, on the thread that has just written.</summary>
internal sealed class MarkWatcher(Action<ulong, ulong> onMark) : IDirtyTracker
{
    public ulong PageSize => 4096;

    public ulong OffsetInFirstPage => 0;

    public void MarkDirty(ulong offset, ulong length) => onMark(offset, length);

    public bool IsDirtyAt(ulong offset) => false;

    public BitmapSlice SliceAt(ulong offset) => new(this, offset);

    public ulong[] Snapshot() => [];

    public ulong[] GetAndReset() => [];

    public void Reset()
    {
    }
}
