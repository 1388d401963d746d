namespace GuestMemory.Core.Interop;

/// <summary>
/// The users and groups whose processes may connect to a socket, besides root and the user of this process. The credentials of each peer
/// decide; the mode of the socket's file lets such a peer come so far.
/// </summary>
internal sealed class AllowedPeers
{
    private readonly uint[] _users;
    private readonly uint[] _groups;

    private AllowedPeers(uint[] users, uint[] groups)
    {
        _users = users;
        _groups = groups;
    }

    /// <summary>Looks the names up.</summary>
    /// <param name="users">Names or numbers of users.</param>
    /// <param name="groups">Names or numbers of groups.</param>
    /// <exception cref="GuestMemoryException">UserNotFound, GroupNotFound.</exception>
    public static AllowedPeers Find(IEnumerable<string> users, IEnumerable<string> groups) => new([.. users.Select(Users.Find).Distinct()], [.. groups.Select(Users.FindGroup).Distinct()]);

    /// <summary>Whether the process at the other end of a connection may use it: by its user, or by one of its groups.</summary>
    public bool Allows(UCred peer, SafeDescriptor socket) => peer.uid == 0 || peer.uid == Users.Current || _users.Contains(peer.uid)
        || (_groups.Length > 0 && (_groups.Contains(peer.gid) || UnixSocket.PeerGroups(socket).Intersect(_groups).Any()));

    /// <summary>Whether a process of a user may connect, of which no more is known.</summary>
    public bool Allows(uint user) => user == 0 || user == Users.Current || _users.Contains(user);

    /// <summary>
    /// Lets the peers reach the file of a socket of mode 0600. Root makes a single user the owner, or a single group the group; else the file is
    /// opened to all, and the check of each connection alone decides.
    /// </summary>
    public void Open(SafeDescriptor file, string path)
    {
        if (_users.Length + _groups.Length == 0) return;
        var isRoot = Users.Current == 0;
        var (function, error) = (_users, _groups) switch
        {
            ([var user], []) when isRoot => ("fchownat", FileStatus.TryChangeOwner(file, user)),
            ([], [var group]) when isRoot => ("fchownat", FileStatus.TryChangeOwner(file, uint.MaxValue, group) is var failed and not 0 ? failed : FileStatus.TryChangeMode(file, 0b110_110_000)),
            _ => ("chmod", FileStatus.TryChangeMode(file, 0b110_110_110)),
        };
        if (error != 0) throw new SyscallException(function, error, $"Opening the socket {path} to users {string.Join(", ", _users)} and groups {string.Join(", ", _groups)}");
    }
}
