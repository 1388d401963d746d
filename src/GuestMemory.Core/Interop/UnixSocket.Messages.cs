using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <content>Bytes, packets and the descriptors that travel with them (SCM_RIGHTS).</content>
internal static unsafe partial class UnixSocket
{
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

    /// <summary>Waits for a packet without taking it: its length, 0 at the end, or the negated error number.</summary>
    public static nint TryPeekLength(SafeDescriptor socket)
    {
        using var lease = new DescriptorLease(socket);
        byte none;
        nint length;
        // ECONNRESET: the peer closed before it had read everything. The kernel reports that once; what the peer sent is still there.
        do length = recv(lease.Number, &none, 0, MSG_PEEK | MSG_TRUNC);
        while (length < 0 && Marshal.GetLastPInvokeError() is Errno.EINTR or Errno.ECONNRESET);
        return length >= 0 ? length : -Marshal.GetLastPInvokeError();
    }

    /// <summary>
    /// Sends bytes, with descriptors attached to the first of them. Returns the bytes sent, or the negated error number. Where the
    /// peer has closed, that is -EPIPE; no signal is raised.
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
    /// <paramref name="truncated"/>: the message had more bytes or descriptors than there was room for, and the kernel dropped them.
    /// </summary>
    public static nint TryReceive(SafeDescriptor socket, Span<byte> data, List<SafeDescriptor> descriptors, out bool truncated, int room = 16, bool wait = false)
    {
        using var lease = new DescriptorLease(socket);
        var control = stackalloc byte[ControlSpace(Math.Max(1, room))];
        // Without the padding, in which the kernel would put one descriptor more.
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

    /// <summary>Takes ownership of every descriptor in a control buffer, also where the message is invalid otherwise.</summary>
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

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint recv(int sockfd, void* buf, nuint len, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint sendmsg(int sockfd, MsgHdr* msg, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint recvmsg(int sockfd, MsgHdr* msg, int flags);
}
