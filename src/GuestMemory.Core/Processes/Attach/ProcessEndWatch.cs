using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>
/// Closes files when a process has ended, so that the memory of a VM is free then, though somebody still has an object that read it. The thread knows only descriptors: it ends
/// when the watch is disposed of, or collected, by which its end of a pair of sockets is closed.
/// </summary>
internal sealed class ProcessEndWatch : IDisposable
{
    private readonly SafeDescriptor _near;

    /// <param name="pidfd">The process; used until the watch ends.</param>
    /// <param name="files">The files.</param>
    public ProcessEndWatch(SafeDescriptor pidfd, IReadOnlyList<SafeFileHandle> files)
    {
        (_near, var far) = UnixSocket.CreatePair(nonBlocking: true, UnixSocket.SOCK_STREAM);
        new Thread(() => Run(pidfd, far, files)) { IsBackground = true, Name = "guest-memory-pe" }.Start();
    }

    public void Dispose() => _near.Dispose();

    private static void Run(SafeDescriptor pidfd, SafeDescriptor far, IReadOnlyList<SafeFileHandle> files)
    {
        try
        {
            using var process = new DescriptorLease(pidfd);
            using var stopping = new DescriptorLease(far);
            Span<PollFd> entries = [new PollFd { fd = process.Number, events = Poll.POLLIN }, new PollFd { fd = stopping.Number, events = Poll.POLLRDHUP }];
            while (Poll.Wait(entries, -1) == 0)
            {
            }

            if (entries[0].revents != 0)
            {
                foreach (var file in files) file.Dispose();
            }
        }
        catch (Exception exception) when (exception is GuestMemoryException or ObjectDisposedException)
        {
            // Everything was released before the thread began; or the files stay open for the holders that are left.
        }

        far.Dispose();
    }
}
