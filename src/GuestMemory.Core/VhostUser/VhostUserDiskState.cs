namespace GuestMemory.Core.VhostUser;

/// <summary>The state of a disk that a vhost-user back end provides.</summary>
public enum VhostUserDiskState
{
    /// <summary>It waits for a front end.</summary>
    Listening,

    /// <summary>A front end is connected.</summary>
    Connected,

    /// <summary>It was stopped.</summary>
    Stopped,
}
