using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

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
    public const int SO_PEERGROUPS = 59;
    public const int SO_RCVTIMEO = 20;
    public const int SO_SNDTIMEO = 21;
    public const int SO_SNDBUFFORCE = 32;
    public const int SHUT_WR = 1;
    public const int SHUT_RDWR = 2;
    public const int MSG_PEEK = 0x2;
    public const int MSG_CTRUNC = 0x8;
    public const int MSG_TRUNC = 0x20;
    public const int MSG_DONTWAIT = 0x40;
    public const int MSG_NOSIGNAL = 0x4000;
    public const int MSG_CMSG_CLOEXEC = 0x40000000;

    // NGROUPS_MAX.
    private const int MaxGroups = 65536;

    /// <summary>An unconnected socket; its path gets <paramref name="mode"/> when it is bound.</summary>
    public static SafeDescriptor Create(bool nonBlocking, uint? mode = null, int type = SOCK_STREAM)
    {
        var number = socket(AF_UNIX, type | SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0), 0);
        if (number < 0) throw new SyscallException("socket", Marshal.GetLastPInvokeError(), "Creating a Unix socket");
        if (mode is { } bits) _ = fchmod(number, bits);
        return new SafeDescriptor(number);
    }

    /// <summary>Two connected sockets, close-on-exec, which keep message boundaries (SOCK_SEQPACKET) unless another type is asked for.</summary>
    public static (SafeDescriptor Near, SafeDescriptor Far) CreatePair(bool nonBlocking, int type = SOCK_SEQPACKET)
    {
        var pair = stackalloc int[2];
        return socketpair(AF_UNIX, type | SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0), 0, pair) == 0
            ? (new SafeDescriptor(pair[0]), new SafeDescriptor(pair[1]))
            : throw new SyscallException("socketpair", Marshal.GetLastPInvokeError(), "Creating a pair of sockets", remedy: "Raise the limit of open files ('ulimit -n').");
    }

    /// <summary>Makes a socket non-blocking; one that another process passed may be blocking.</summary>
    public static void SetNonBlocking(SafeDescriptor socket) => Userfaultfd.SetNonBlocking(socket.Number);

    public static int TryListen(SafeDescriptor socket, int backlog)
    {
        using var lease = new DescriptorLease(socket);
        return listen(lease.Number, backlog) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Accepts one connection, non-blocking itself unless asked otherwise; null with the error number where there is none.</summary>
    public static SafeDescriptor? TryAccept(SafeDescriptor listener, out int error, bool nonBlocking = true)
    {
        using var lease = new DescriptorLease(listener);
        var number = accept4(lease.Number, null, null, SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0));
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeDescriptor(number);
    }

    /// <summary>Shuts a connection down for the peer and for every holder of a duplicate.</summary>
    public static void Shutdown(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        _ = shutdown(lease.Number, SHUT_RDWR);
    }

    /// <summary>Sends no more; what the peer sends still comes.</summary>
    public static void EndSending(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        _ = shutdown(lease.Number, SHUT_WR);
    }

    /// <summary>Whether the peer has closed its end, or sends no more; what it sent before may be unread.</summary>
    public static bool HasPeerEnded(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLRDHUP }];
        return Poll.Wait(entry, 0) > 0;
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

    /// <summary>The supplementary groups that the peer had when it connected; none where the kernel does not say.</summary>
    public static uint[] PeerGroups(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        for (var groups = new uint[64]; ;)
        {
            var length = (uint)(groups.Length * sizeof(uint));
            int result;
            fixed (uint* pointer = groups) result = getsockopt(lease.Number, SOL_SOCKET, SO_PEERGROUPS, pointer, &length);
            var count = (int)Math.Min(length / sizeof(uint), MaxGroups);
            if (result == 0) return groups[..count];
            // The length is then what it should have been.
            if (Marshal.GetLastPInvokeError() != Errno.ERANGE || count <= groups.Length) return [];
            groups = new uint[count];
        }
    }

    /// <summary>Limits how long sending or receiving (SO_SNDTIMEO, SO_RCVTIMEO) waits; zero: no limit. Returns 0 or the error number.</summary>
    public static int TrySetTimeout(SafeDescriptor socket, int option, TimeSpan timeout)
    {
        using var lease = new DescriptorLease(socket);
        var value = new TimeVal { tv_sec = timeout.Ticks / TimeSpan.TicksPerSecond, tv_usec = timeout.Ticks % TimeSpan.TicksPerSecond / TimeSpan.TicksPerMicrosecond };
        return setsockopt(lease.Number, SOL_SOCKET, option, &value, (uint)sizeof(TimeVal)) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Enlarges the send buffer for a packet of so many bytes, as far as this user may.</summary>
    public static void MakeRoom(SafeDescriptor socket, int bytes)
    {
        using var lease = new DescriptorLease(socket);
        // The kernel doubles the number, for its own needs. Only CAP_NET_ADMIN may exceed net.core.wmem_max.
        if (setsockopt(lease.Number, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(int)) != 0) _ = setsockopt(lease.Number, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(int));
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
    private static partial int socket(int domain, int type, int protocol);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fchmod(int fd, uint mode);

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
}
