using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>An eventfd, for guests' stores to signal (crosvm's <c>base::Event</c>). Signals add up until they are taken.</summary>
public sealed class IoEvent : IDisposable
{
    private readonly SafeDescriptor _descriptor = EventFd.Create();

    /// <summary>The descriptor, to be registered; it stays this object's.</summary>
    public SafeHandle Handle => _descriptor;

    /// <summary>Signals it, as a guest's store does.</summary>
    /// <exception cref="ObjectDisposedException">It was closed.</exception>
    public void Signal() => EventFd.Signal(_descriptor);

    /// <summary>Waits for a signal, and takes all there are; false where none came in time.</summary>
    /// <param name="timeout">How long at most, up to 2^31 - 1 ms; zero to look only.</param>
    /// <exception cref="ObjectDisposedException">It was closed.</exception>
    public bool Wait(TimeSpan timeout)
    {
        using var lease = new DescriptorLease(_descriptor);
        Span<PollFd> descriptors = [new PollFd { fd = lease.Number, events = Poll.POLLIN }];
        return Poll.Wait(descriptors, (int)Math.Clamp(timeout.TotalMilliseconds, 0, int.MaxValue)) > 0 && EventFd.Clear(_descriptor);
    }

    /// <summary>Closes it. Where it is registered, the VM keeps it.</summary>
    public void Dispose() => _descriptor.Dispose();
}
