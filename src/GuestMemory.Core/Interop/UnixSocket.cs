using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct sockaddr_un</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct SockAddrUn
{
    public ushort sun_family;
    public fixed byte sun_path[108];
}

/// <summary><c>struct msghdr</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct MsgHdr
{
    public void* msg_name;
    public uint msg_namelen;
    public IoVec* msg_iov;
    public nuint msg_iovlen;
    public void* msg_control;
    public nuint msg_controllen;
    public int msg_flags;
}

/// <summary><c>struct cmsghdr</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct CmsgHdr
{
    public nuint cmsg_len;
    public int cmsg_level;
    public int cmsg_type;
}

/// <summary><c>struct ucred</c>: the other end of a Unix socket, as it was when it connected.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UCred
{
    public int pid;
    public uint uid;
    public uint gid;
}

/// <summary><c>struct timeval</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct TimeVal
{
    public long tv_sec;
    public long tv_usec;
}

/// <summary>AF_UNIX sockets, for streams and for packets, with descriptor passing (<c>unix(7)</c>).</summary>
internal static unsafe partial class UnixSocket
{
    public const int AF_UNIX = 1;
    public const int SOCK_STREAM = 1;
    public const int SOCK_DGRAM = 2;
    public const int SOCK_SEQPACKET = 5;
    public const int SOCK_CLOEXEC = 0x80000;
    public const int SOCK_NONBLOCK = 0x800;
    public const int SOL_SOCKET = 1;
    public const int SCM_RIGHTS = 1;
    public const int SO_TYPE = 3;
    public const int SO_SNDBUF = 7;
    public const int SO_PEERCRED = 17;
    public const int SO_ACCEPTCONN = 30;
    public const int SO_DOMAIN = 39;
    public const int SO_RCVTIMEO = 20;
    public const int SO_SNDTIMEO = 21;
    public const int SO_SNDBUFFORCE = 32;
    public const int SHUT_RDWR = 2;
    public const int MSG_PEEK = 0x2;
    public const int MSG_CTRUNC = 0x8;
    public const int MSG_TRUNC = 0x20;
    public const int MSG_DONTWAIT = 0x40;
    public const int MSG_NOSIGNAL = 0x4000;
    public const int MSG_CMSG_CLOEXEC = 0x40000000;

    /// <summary>The longest path a socket address holds, in bytes.</summary>
    public const int MaxPathLength = 107;

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

    /// <summary>A descriptor of a fresh, unconnected socket; its inode gets <paramref name="mode"/> when it is bound.</summary>
    public static SafeDescriptor Create(bool nonBlocking, uint? mode = null, int type = SOCK_STREAM)
    {
        var number = socket(AF_UNIX, type | SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0), 0);
        if (number < 0) throw new SyscallException("socket", Marshal.GetLastPInvokeError(), "Creating a Unix socket");
        if (mode is { } bits) _ = fchmod(number, bits);
        return new SafeDescriptor(number);
    }

    /// <summary>Two ends of a channel that keeps messages whole, close-on-exec.</summary>
    public static (SafeDescriptor Near, SafeDescriptor Far) CreatePair(bool nonBlocking)
    {
        var pair = stackalloc int[2];
        return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0), 0, pair) == 0
            ? (new SafeDescriptor(pair[0]), new SafeDescriptor(pair[1]))
            : throw new SyscallException("socketpair", Marshal.GetLastPInvokeError(), "Creating a pair of sockets", remedy: "Raise the limit of open files ('ulimit -n').");
    }

    /// <summary>
    /// Sends one datagram, with descriptors and without waiting, to an address: a path, or a name in the abstract namespace after '@'. Returns 0 or the
    /// error number.
    /// </summary>
    public static int TrySendTo(string address, ReadOnlySpan<byte> data, ReadOnlySpan<int> descriptors)
    {
        var number = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (number < 0) return Marshal.GetLastPInvokeError();
        using var datagram = new SafeDescriptor(number);
        var error = TryConnect(datagram, address);
        if (error != 0) return error;
        var sent = TrySend(datagram, data, descriptors);
        return sent < 0 ? (int)-sent : 0;
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

    /// <summary>Makes what is accepted and sent never wait; an inherited socket may be otherwise.</summary>
    public static void SetNonBlocking(SafeDescriptor socket) => Userfaultfd.SetNonBlocking(socket.Number);

    public static int TryBind(SafeDescriptor socket, string path) => WithAddress(socket, path, connecting: false);

    public static int TryConnect(SafeDescriptor socket, string path) => WithAddress(socket, path, connecting: true);

    public static int TryListen(SafeDescriptor socket, int backlog)
    {
        using var lease = new DescriptorLease(socket);
        return listen(lease.Number, backlog) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Accepts one connection, non-blocking itself unless asked otherwise; null where none waits, with the error number otherwise.</summary>
    public static SafeDescriptor? TryAccept(SafeDescriptor listener, out int error, bool nonBlocking = true)
    {
        using var lease = new DescriptorLease(listener);
        var number = accept4(lease.Number, null, null, SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0));
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeDescriptor(number);
    }

    /// <summary>Ends a connection for whoever holds a duplicate of it, and for the peer.</summary>
    public static void Shutdown(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        _ = shutdown(lease.Number, SHUT_RDWR);
    }

    public static UCred PeerCredentials(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        UCred credentials;
        var length = (uint)sizeof(UCred);
        return getsockopt(lease.Number, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0
            ? credentials
            : throw new SyscallException("getsockopt", Marshal.GetLastPInvokeError(), "Reading the peer's credentials");
    }

    /// <summary>Limits how long sending or receiving (SO_SNDTIMEO, SO_RCVTIMEO) may wait; zero for ever. 0 or the error number.</summary>
    public static int TrySetTimeout(SafeDescriptor socket, int option, TimeSpan timeout)
    {
        using var lease = new DescriptorLease(socket);
        var value = new TimeVal { tv_sec = timeout.Ticks / TimeSpan.TicksPerSecond, tv_usec = timeout.Ticks % TimeSpan.TicksPerSecond / TimeSpan.TicksPerMicrosecond };
        return setsockopt(lease.Number, SOL_SOCKET, option, &value, (uint)sizeof(TimeVal)) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Makes room for a packet of so many bytes where there is less: as much as this user may have.</summary>
    public static void MakeRoom(SafeDescriptor socket, int bytes)
    {
        using var lease = new DescriptorLease(socket);
        // The kernel doubles it, for what it needs itself. Only an administrator of the network is let past net.core.wmem_max.
        if (setsockopt(lease.Number, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(int)) != 0) _ = setsockopt(lease.Number, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(int));
    }

    /// <summary>Waits for a packet and leaves it there: its length, 0 at the end, or the negated error number.</summary>
    public static nint TryPeekLength(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        byte none;
        nint length;
        // That a peer left without reading everything is said once, before what it sent: that is still there.
        do length = recv(lease.Number, &none, 0, MSG_PEEK | MSG_TRUNC);
        while (length < 0 && Marshal.GetLastPInvokeError() is Errno.EINTR or Errno.ECONNRESET);
        return length >= 0 ? length : -Marshal.GetLastPInvokeError();
    }

    /// <summary>
    /// Sends bytes, with descriptors attached to the first of them. Returns the bytes sent, or the negated error number. A peer
    /// that is gone gives -EPIPE, never a signal.
    /// </summary>
    public static nint TrySend(SafeDescriptor socket, ReadOnlySpan<byte> data, ReadOnlySpan<int> descriptors, bool wait = true)
    {
        using var lease = new DescriptorLease(socket);
        var control = stackalloc byte[ControlSpace(Math.Max(1, descriptors.Length))];
        fixed (byte* bytes = data)
        {
            var vector = new IoVec { iov_base = bytes, iov_len = (nuint)data.Length };
            var message = new MsgHdr { msg_iov = &vector, msg_iovlen = 1 };
            if (!descriptors.IsEmpty)
            {
                var header = (CmsgHdr*)control;
                header->cmsg_len = (nuint)(sizeof(CmsgHdr) + descriptors.Length * sizeof(int));
                header->cmsg_level = SOL_SOCKET;
                header->cmsg_type = SCM_RIGHTS;
                descriptors.CopyTo(new Span<int>(header + 1, descriptors.Length));
                message.msg_control = control;
                message.msg_controllen = (nuint)ControlSpace(descriptors.Length);
            }

            nint sent;
            do sent = sendmsg(lease.Number, &message, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
            while (sent < 0 && Marshal.GetLastPInvokeError() == Errno.EINTR);
            return sent >= 0 ? sent : -Marshal.GetLastPInvokeError();
        }
    }

    /// <summary>
    /// Receives bytes, without waiting unless asked to, and adds the descriptors that came with them, close-on-exec, to
    /// <paramref name="descriptors"/>. Returns the bytes received, 0 at the end of the stream, or the negated error number.
    /// <paramref name="truncated"/> tells that more bytes of a message or more descriptors came than there was room for (the kernel
    /// dropped those).
    /// </summary>
    public static nint TryReceive(SafeDescriptor socket, Span<byte> data, List<SafeDescriptor> descriptors, out bool truncated, int room = 16, bool wait = false)
    {
        using var lease = new DescriptorLease(socket);
        var control = stackalloc byte[ControlSpace(Math.Max(1, room))];
        // Without the padding, which the kernel would fill with one descriptor more.
        var controlLength = sizeof(CmsgHdr) + room * sizeof(int);
        fixed (byte* bytes = data)
        {
            var vector = new IoVec { iov_base = bytes, iov_len = (nuint)data.Length };
            var message = new MsgHdr { msg_iov = &vector, msg_iovlen = 1, msg_control = control, msg_controllen = (nuint)controlLength };
            nint received;
            do received = recvmsg(lease.Number, &message, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
            while (received < 0 && Marshal.GetLastPInvokeError() == Errno.EINTR);
            truncated = false;
            if (received < 0) return -Marshal.GetLastPInvokeError();
            truncated = (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0;
            TakeDescriptors(control, (long)message.msg_controllen, descriptors);
            return received;
        }
    }

    /// <summary>The descriptors in a control buffer; every one of them is owned from here on, whatever else is wrong with the message.</summary>
    private static void TakeDescriptors(byte* control, long length, List<SafeDescriptor> descriptors)
    {
        for (long at = 0; at + sizeof(CmsgHdr) <= length;)
        {
            var header = (CmsgHdr*)(control + at);
            if ((long)header->cmsg_len < sizeof(CmsgHdr)) return;
            if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            {
                var count = (int)((long)header->cmsg_len - sizeof(CmsgHdr)) / sizeof(int);
                for (var i = 0; i < count; i++) descriptors.Add(new SafeDescriptor(((int*)(header + 1))[i]));
            }

            at += (long)(header->cmsg_len + 7 & ~(nuint)7);
        }
    }

    private static int ControlSpace(int descriptors) => sizeof(CmsgHdr) + (descriptors * sizeof(int) + 7 & ~7);

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

    private static int Option(SafeDescriptor socket, int name)
    {
        using var lease = new DescriptorLease(socket);
        int value;
        uint length = sizeof(int);
        return getsockopt(lease.Number, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int socketpair(int domain, int type, int protocol, int* sv);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getsockname(int sockfd, SockAddrUn* addr, uint* addrlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int socket(int domain, int type, int protocol);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fchmod(int fd, uint mode);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int bind(int sockfd, SockAddrUn* addr, uint addrlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int connect(int sockfd, SockAddrUn* addr, uint addrlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int listen(int sockfd, int backlog);

    [LibraryImport("libc")]
    private static partial int shutdown(int sockfd, int how);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int accept4(int sockfd, void* addr, uint* addrlen, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getsockopt(int sockfd, int level, int optname, void* optval, uint* optlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setsockopt(int sockfd, int level, int optname, void* optval, uint optlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint recv(int sockfd, void* buf, nuint len, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint sendmsg(int sockfd, MsgHdr* msg, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint recvmsg(int sockfd, MsgHdr* msg, int flags);
}
