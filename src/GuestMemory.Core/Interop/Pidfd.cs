using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Processes that cannot be mistaken for another once their number is used again (<c>pidfd_open(2)</c>).</summary>
internal static unsafe partial class Pidfd
{
    public const int SIGKILL = 9;
    public const int SIGTERM = 15;
    public const int SIGSTOP = 19;
    public const int SIGSYS = 31;
    public const int SO_PEERPIDFD = 77;

    public const int P_PIDFD = 3;
    public const int WNOHANG = 1;
    public const int WEXITED = 4;
    public const int CLD_EXITED = 1;

    // The same numbers on every architecture: they are younger than the common table.
    public const int SYS_pidfd_send_signal = 424;
    public const int SYS_pidfd_open = 434;
    public const int SYS_pidfd_getfd = 438;

    /// <summary>A descriptor of a process, close-on-exec, that becomes readable when the process has ended; null with the error number.</summary>
    public static SafeDescriptor? TryOpen(int process, out int error)
    {
        var number = (int)syscall(SYS_pidfd_open, process, 0, 0, 0);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeDescriptor(number);
    }

    /// <summary>
    /// The process that connected a Unix socket; null with ESRCH where it has ended, with EPERM where it cannot be told from another.
    /// Kernels before 6.5 know only its number, which by now another process may have: one of the same user is then told from it by
    /// what it does after this call (where its memory can be filled, it was alive when the descriptor was opened, and had the number).
    /// </summary>
    public static SafeDescriptor? TryOfPeer(SafeDescriptor socket, UCred peer, out int error)
    {
        using var lease = new DescriptorLease(socket);
        int number;
        uint length = sizeof(int);
        error = getsockopt(lease.Number, UnixSocket.SOL_SOCKET, SO_PEERPIDFD, &number, &length) == 0 ? 0 : Marshal.GetLastPInvokeError();
        if (error == 0) return new SafeDescriptor(number);
        // Some kernels say EINVAL of a process that has ended.
        if (error == Errno.EINVAL) error = Errno.ESRCH;
        if (error is Errno.ESRCH or Errno.EMFILE or Errno.ENFILE or Errno.ENOMEM) return null;
        var descriptor = TryOpen(peer.pid, out error);
        if (descriptor is null) return null;
        error = TryCheckUser(peer);
        if (error == 0) return descriptor;
        descriptor.Dispose();
        return null;
    }

    /// <summary>A duplicate of a process's descriptor, close-on-exec; null with the error number.</summary>
    public static SafeDescriptor? TryGetDescriptor(SafeDescriptor process, int descriptor, out int error)
    {
        using var lease = new DescriptorLease(process);
        var number = (int)syscall(SYS_pidfd_getfd, lease.Number, descriptor, 0, 0);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeDescriptor(number);
    }

    /// <summary>Whether a descriptor is one of a process.</summary>
    public static bool IsPidfd(SafeDescriptor descriptor) => Descriptor.PathOf(descriptor.Number) is var path
        && (path == "anon_inode:[pidfd]" || path.StartsWith("pidfd:", StringComparison.Ordinal));

    /// <summary>Whether the process has ended.</summary>
    public static bool HasEnded(SafeDescriptor process)
    {
        using var lease = new DescriptorLease(process);
        Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLIN }];
        return Poll.Wait(entry, 0) > 0;
    }

    /// <summary>Ends the process; 0 or the error number.</summary>
    public static int TryKill(SafeDescriptor process) => TrySignal(process, SIGKILL);

    /// <summary>Sends a signal; 0 or the error number.</summary>
    public static int TrySignal(SafeDescriptor process, int signal)
    {
        using var lease = new DescriptorLease(process);
        return syscall(SYS_pidfd_send_signal, lease.Number, signal, 0, 0) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Takes the end of a child, so that it is no zombie: how it ended, or null while it runs.</summary>
    public static string? TryReap(SafeDescriptor process)
    {
        using var lease = new DescriptorLease(process);
        var information = stackalloc int[32];   // siginfo_t: 128 bytes; signo, errno, code, (padding), pid, uid, status
        new Span<int>(information, 32).Clear();
        if (waitid(P_PIDFD, (uint)lease.Number, information, WEXITED | WNOHANG) != 0 || information[0] == 0) return null;
        return information[2] == CLD_EXITED ? $"exit code {information[6]}" : HowOf(information[6]);
    }

    /// <summary>How a process ended that a signal ended.</summary>
    public static string HowOf(int signal) => signal == SIGSYS ? "signal 31, SIGSYS" : $"signal {signal}";

    /// <summary>Whether the process that has the peer's number has its user among its own (real, effective, saved); 0 or the error number.</summary>
    private static int TryCheckUser(UCred peer)
    {
        try
        {
            // "Uid:\tREAL\tEFFECTIVE\tSAVED\tFS"; the owner of /proc/PID is root where the process may not be dumped.
            var line = File.ReadLines($"/proc/{peer.pid}/status").FirstOrDefault(static text => text.StartsWith("Uid:", StringComparison.Ordinal));
            return line is not null && line.Split('\t').Skip(1).Any(user => user == peer.uid.ToString(System.Globalization.CultureInfo.InvariantCulture)) ? 0 : Errno.EPERM;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return Errno.ESRCH;
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getsockopt(int sockfd, int level, int optname, void* optval, uint* optlen);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint first, nint second, nint third, nint fourth);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int waitid(int idtype, uint id, void* infop, int options);
}
