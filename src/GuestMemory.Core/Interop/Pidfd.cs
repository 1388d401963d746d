using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Processes that cannot be mistaken for another once their number is used again (<c>pidfd_open(2)</c>).</summary>
internal static unsafe partial class Pidfd
{
    public const int SIGKILL = 9;
    public const int SO_PEERPIDFD = 77;

    // The same on every architecture.
    private const int PidfdOpen = 434;
    private const int PidfdSendSignal = 424;

    /// <summary>
    /// The process that connected a Unix socket. Kernels before 6.5 know only its number: it must then still belong to the user
    /// who connected.
    /// </summary>
    public static SafeDescriptor? TryOfPeer(SafeDescriptor socket, UCred peer, out int error)
    {
        using var lease = new DescriptorLease(socket);
        int number;
        uint length = sizeof(int);
        error = getsockopt(lease.Number, UnixSocket.SOL_SOCKET, SO_PEERPIDFD, &number, &length) == 0 ? 0 : Marshal.GetLastPInvokeError();
        if (error == 0) return new SafeDescriptor(number);
        number = (int)syscall(PidfdOpen, peer.pid, 0, 0, 0);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        if (error != 0) return null;
        var descriptor = new SafeDescriptor(number);
        error = FileStatus.TryGet($"/proc/{peer.pid}", out var status);
        if (error == 0 && status.stx_uid != peer.uid) error = Errno.ESRCH;
        if (error == 0) return descriptor;
        descriptor.Dispose();
        return null;
    }

    /// <summary>Ends the process; 0 or the error number.</summary>
    public static int TryKill(SafeDescriptor process)
    {
        using var lease = new DescriptorLease(process);
        return syscall(PidfdSendSignal, lease.Number, SIGKILL, 0, 0) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getsockopt(int sockfd, int level, int optname, void* optval, uint* optlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint first, nint second, nint third, nint fourth);
}
