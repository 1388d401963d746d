using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Interop;

/// <content>Addresses: a path, or a name in the abstract namespace after '@'.</content>
internal static unsafe partial class UnixSocket
{
    /// <summary>The longest path a socket address holds, in bytes.</summary>
    public const int MaxPathLength = 107;

    public const uint SIOCUNIXFILE = 0x89E0;

    /// <summary>Checks that a path has room in a socket address.</summary>
    /// <exception cref="GuestMemoryException">SocketPathTooLong.</exception>
    public static void CheckPath(string path)
    {
        var length = Encoding.UTF8.GetByteCount(path);
        if (length > MaxPathLength)
        {
            throw new GuestMemoryException(GuestMemoryError.SocketPathTooLong,
                $"The socket path is {length} bytes long; a socket address holds {MaxPathLength}. Use a shorter one, in /run for example: {path}");
        }
    }

    /// <summary>The path that a listening Unix stream socket is bound to; null where the descriptor is none.</summary>
    public static string? ListeningPath(SafeDescriptor socket)
    {
        if (Option(socket, SO_DOMAIN) != AF_UNIX || Option(socket, SO_TYPE) != SOCK_STREAM || Option(socket, SO_ACCEPTCONN) != 1) return null;
        using var lease = new DescriptorLease(socket);
        SockAddrUn address = default;
        var length = (uint)sizeof(SockAddrUn);
        if (getsockname(lease.Number, &address, &length) != 0) return null;
        var path = new ReadOnlySpan<byte>(address.sun_path, Math.Clamp((int)length - sizeof(ushort), 0, 108));
        var end = path.IndexOf((byte)0);
        return Encoding.UTF8.GetString(end < 0 ? path : path[..end]);
    }

    /// <summary>
    /// A descriptor (O_PATH) of the file that a socket was bound to, whatever its path names by now; null with the error number. Without
    /// CAP_NET_ADMIN the kernel does not give it: then it is what the path names, where that is a socket of this user without another name (else EPERM).
    /// </summary>
    public static SafeDescriptor? TryOpenFile(SafeDescriptor socket, string path, out int error)
    {
        using (var lease = new DescriptorLease(socket))
        {
            var number = ioctl(lease.Number, SIOCUNIXFILE, null);
            error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
            if (number >= 0) return new SafeDescriptor(number);
        }

        if (FileStatus.TryOpenPath(path, out error) is not { } file) return null;
        var status = FileStatus.Get(file);
        if ((status.stx_mode & FileStatus.S_IFMT) == FileStatus.S_IFSOCK && status.stx_uid == Users.Current && status.stx_nlink == 1) return file;
        file.Dispose();
        error = Errno.EPERM;
        return null;
    }

    public static int TryBind(SafeDescriptor socket, string path) => WithAddress(socket, path, connecting: false);

    public static int TryConnect(SafeDescriptor socket, string path) => WithAddress(socket, path, connecting: true);

    private static int WithAddress(SafeDescriptor socket, string path, bool connecting)
    {
        SockAddrUn address = default;
        address.sun_family = AF_UNIX;
        CheckPath(path);
        var length = (uint)(sizeof(ushort) + Encoding.UTF8.GetBytes(path, new Span<byte>(address.sun_path, MaxPathLength)));
        // A name in the abstract namespace begins with a zero byte and ends with its length.
        if (path.StartsWith('@')) address.sun_path[0] = 0;
        else length = (uint)sizeof(SockAddrUn);
        using var lease = new DescriptorLease(socket);
        while (true)
        {
            var result = connecting ? connect(lease.Number, &address, length) : bind(lease.Number, &address, length);
            if (result == 0) return 0;
            var error = Marshal.GetLastPInvokeError();
            if (error != Errno.EINTR) return error;
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, void* argument);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int bind(int sockfd, SockAddrUn* addr, uint addrlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int connect(int sockfd, SockAddrUn* addr, uint addrlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getsockname(int sockfd, SockAddrUn* addr, uint* addrlen);
}
