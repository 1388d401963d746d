namespace GuestMemory.Core.VhostUser;

/// <summary>What disk a vhost-user back end provides, where, and for whom.</summary>
public sealed class VhostUserDiskOptions
{
    /// <summary>The name; the guest sees its first 20 ASCII characters as the disk's serial number.</summary>
    public required string Name { get; init; }

    /// <summary>Where the back end listens; at most 107 bytes.</summary>
    public required string SocketPath { get; init; }

    /// <summary>The disk: a raw image of whole sectors of 512 bytes.</summary>
    public required string ImagePath { get; init; }

    /// <summary>Whether the guest may not change the disk. The image is opened for reading alone then.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>How many virtqueues a front end may use: 1 to 256. One that is not used costs nothing.</summary>
    public int QueueCount { get; init; } = 16;

    /// <summary>Further users, by name or number, whose front ends may connect; this one's and root's always may.</summary>
    public IReadOnlyList<string> AllowUser { get; init; } = [];

    /// <summary>
    /// Whether the front end is trusted not to shorten the files that it shares, which would end this process, and, where it is another user's, to
    /// migrate by post-copy; see <see cref="VhostUserConnection"/>.
    /// </summary>
    public bool TrustFrontEnd { get; init; }

    /// <summary>
    /// Also listens in a directory where every user may replace the socket, and replaces a socket without a listener that this user may not
    /// connect to. Other sockets without a listener, as a process that was killed leaves them, are replaced in any case; those with one never.
    /// </summary>
    public bool Force { get; init; }
}
