using System.Globalization;

namespace GuestMemory.Core.Interop;

/// <summary>A listening Unix socket: created with mode 0600, checks the peer of each connection, and removes its path when disposed.</summary>
internal sealed class UnixListener : IDisposable
{
    private const uint AcceptsConnections = 0x10000;

    private readonly ulong _inode;
    private readonly AllowedPeers? _allowed;
    private bool _keepsPath;

    private UnixListener(SafeDescriptor socket, string path, ulong inode, AllowedPeers? allowed)
    {
        Socket = socket;
        Path = path;
        _inode = inode;
        _allowed = allowed;
    }

    public SafeDescriptor Socket { get; }

    public string Path { get; }

    /// <summary>Whether this process, or one before it, made the path, so that it is removed with the listener.</summary>
    public bool IsOurs => _inode != 0;

    /// <exception cref="GuestMemoryException">SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound (no directory), InsecureDirectory.</exception>
    public static UnixListener Open(string path, AllowedPeers? allowed, bool force, int type = UnixSocket.SOCK_STREAM)
    {
        UnixSocket.CheckPath(path);
        CheckDirectory(path, force);
        ClearPath(path, force);
        var socket = UnixSocket.Create(nonBlocking: true, mode: 0b110_000_000, type);
        try
        {
            var error = UnixSocket.TryBind(socket, path);
            if (error == Errno.EADDRINUSE) throw InUse(path);
            if (error != 0) throw new SyscallException("bind", error, $"Making the socket {path}");
            // By its path the owner of the directory could have another file given away.
            using var file = UnixSocket.TryOpenFile(socket, path, out error)
                ?? throw new SyscallException("open", error, $"Opening the socket file {path}", remedy: error == Errno.EPERM ? "Another program replaced it. Use a directory that others cannot write." : null);
            var listener = new UnixListener(socket, path, FileStatus.Get(file).stx_ino, allowed);
            try
            {
                allowed?.Open(file, path);
                error = UnixSocket.TryListen(socket, 128);
                return error == 0 ? listener : throw new SyscallException("listen", error, $"Listening at {path}");
            }
            catch
            {
                listener.Dispose();
                throw;
            }
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <summary>Takes over a listening socket that another process made: a service manager, for example.</summary>
    /// <param name="socket">The socket.</param>
    /// <param name="path">Its path.</param>
    /// <param name="allowed">Who else may connect.</param>
    /// <param name="isOurs">Whether disposal removes the path.</param>
    public static UnixListener Adopt(SafeDescriptor socket, string path, AllowedPeers? allowed, bool isOurs)
    {
        UnixSocket.SetNonBlocking(socket);
        ulong inode = 0;
        if (isOurs && FileStatus.TryGet(path, out var status) == 0) inode = status.stx_ino;
        return new UnixListener(socket, path, inode, allowed);
    }

    /// <summary>Whether the process at the other end of a connection may use it.</summary>
    public bool Allows(UCred peer, SafeDescriptor socket) => _allowed is null ? peer.uid == 0 || peer.uid == Users.Current : _allowed.Allows(peer, socket);

    /// <summary>Has the path stay: another process goes on with the socket.</summary>
    public void KeepPath() => _keepsPath = true;

    public void Dispose()
    {
        try
        {
            // Only the socket that this listener made; another process may have replaced it.
            if (IsOurs && !_keepsPath && FileStatus.TryGet(Path, out var status) == 0 && status.stx_ino == _inode) File.Delete(Path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // The directory is no longer writable. The socket stays, as after a process that was killed.
        }

        Socket.Dispose();
    }

    private static void CheckDirectory(string path, bool force)
    {
        var directory = System.IO.Path.GetDirectoryName(System.IO.Path.GetFullPath(path)) ?? "/";
        var error = FileStatus.TryGet(directory, out var status);
        if (error is Errno.ENOENT or Errno.ENOTDIR)
            throw new GuestMemoryException(GuestMemoryError.SocketNotFound, $"The directory {directory} does not exist; create it first ('mkdir -p').");
        if (error != 0) throw new SyscallException("statx", error, $"Looking at {directory}");
        if (!force && (status.stx_mode & FileStatus.S_IFMT) == FileStatus.S_IFDIR && (status.stx_mode & FileStatus.S_IWOTH) != 0 && (status.stx_mode & FileStatus.S_ISVTX) == 0)
        {
            throw new GuestMemoryException(GuestMemoryError.InsecureDirectory,
                $"Every user may replace files in {directory}, and so the socket. Use another directory, or make it sticky ('chmod +t').");
        }
    }

    /// <summary>Removes a socket on which no process listens; refuses to remove anything else.</summary>
    private static void ClearPath(string path, bool force)
    {
        var error = FileStatus.TryGet(path, out var status);
        if (error == Errno.ENOENT) return;
        if (error != 0) throw new SyscallException("statx", error, $"Looking at {path}");
        if ((status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFSOCK)
            throw new GuestMemoryException(GuestMemoryError.NotASocket, $"{path} exists and is not a socket; it is left unchanged. Give another path.");
        // Most listeners are listed here. A test connection would use up a handler that accepts only one.
        if (IsListed(path)) throw InUse(path);
        using var probe = UnixSocket.Create(nonBlocking: true);
        error = UnixSocket.TryConnect(probe, path);
        if (error != Errno.ECONNREFUSED && !(force && error == Errno.EACCES)) throw InUse(path);
        File.Delete(path);
    }

    private static bool IsListed(string path)
    {
        try
        {
            return File.ReadLines("/proc/net/unix").Any(line => line.EndsWith(" " + path, StringComparison.Ordinal) && IsListener(line));
        }
        catch (IOException)
        {
            return false;
        }
        catch (UnauthorizedAccessException)
        {
            return false;
        }
    }

    /// <summary>Whether a line of /proc/net/unix is that of a socket that accepts connections (__SO_ACCEPTCON in its flags, the fourth field). Those that it accepted have its path, too.</summary>
    private static bool IsListener(string line) => line.Split(' ', 5, StringSplitOptions.RemoveEmptyEntries) is [_, _, _, var flags, _]
        && uint.TryParse(flags, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var bits) && (bits & AcceptsConnections) != 0;

    private static GuestMemoryException InUse(string path) =>
        new(GuestMemoryError.SocketInUse, $"Another process listens at {path}. Stop it, or give another path.");
}
