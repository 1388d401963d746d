namespace GuestMemory.Core.Processes;

/// <summary>What becomes of a <see cref="ProcessDirtyTracker"/>.</summary>
public enum ProcessTrackingState
{
    /// <summary>Writes to the range are noted.</summary>
    Tracking,

    /// <summary>The process has ended.</summary>
    Ended,

    /// <summary>The tracking was stopped.</summary>
    Stopped,
}
