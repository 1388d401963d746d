namespace GuestMemory.Core.Xen;

/// <summary>Frames of a domain one behind the other.</summary>
/// <param name="First">The number of the first.</param>
/// <param name="Count">How many they are, at least 1.</param>
internal readonly record struct FrameRun(ulong First, ulong Count)
{
    /// <summary>The frame behind the last.</summary>
    public ulong End => First + Count;
}
