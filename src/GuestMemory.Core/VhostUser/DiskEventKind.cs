namespace GuestMemory.Core.VhostUser;

/// <summary>What the thread of a virtqueue waits for.</summary>
internal enum DiskEventKind
{
    /// <summary>An operation has ended.</summary>
    Ended,
    /// <summary>The guest has kicked.</summary>
    Kicked,
    /// <summary>The virtqueue is to be stopped.</summary>
    Stopped,
}
