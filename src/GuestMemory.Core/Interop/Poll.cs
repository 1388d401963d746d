using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct pollfd</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct PollFd
{
    public int fd;
    public short events;
    public short revents;
}

/// <summary><c>poll(2)</c>.</summary>
internal static unsafe partial class Poll
{
    public const short POLLIN = 0x001;
    public const short POLLOUT = 0x004;
    public const short POLLERR = 0x008;
    public const short POLLRDHUP = 0x2000;

    /// <summary>Waits for one of the descriptors, at most <paramref name="timeoutMilliseconds"/> (-1: for ever); returns how many are ready. EINTR counts as none.</summary>
    public static int Wait(Span<PollFd> descriptors, int timeoutMilliseconds)
    {
        fixed (PollFd* pointer = descriptors)
        {
            var ready = poll(pointer, (nuint)descriptors.Length, timeoutMilliseconds);
            if (ready >= 0) return ready;
        }

        var error = Marshal.GetLastPInvokeError();
        return error == Errno.EINTR ? 0 : throw new SyscallException("poll", error, $"Waiting for {descriptors.Length} descriptors");
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int poll(PollFd* fds, nuint nfds, int timeout);
}
