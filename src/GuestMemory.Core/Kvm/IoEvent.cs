using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>An eventfd that stores of a guest signal (crosvm's <c>base::Event</c>). The count of signals grows until it is read.</summary>
public sealed class IoEvent : IDisposable
{
    private readonly SafeDescriptor _descriptor = EventFd.Create();

    /// <summary>The descriptor, for registration; owned by this object.</summary>
    public SafeHandle Handle => _descriptor;

    /// <summary>Signals it, as a guest's store does.</summary>
    /// <exception cref="ObjectDisposedException">It was closed.</exception>
    public void Signal() => EventFd.Signal(_descriptor);

    /// <summary>Waits for a signal and resets the count; false where no signal came in time.</summary>
    /// <param name="timeout">The longest wait, up to 2^31 - 1 ms; zero does not wait.</param>
    /// <exception cref="ObjectDisposedException">It was closed.</exception>
    public bool Wait(TimeSpan timeout)
    {
        using var lease = new DescriptorLease(_descriptor);
        Span<PollFd> descriptors = [new PollFd { fd = lease.Number, events = Poll.POLLIN }];
        return Poll.Wait(descriptors, (int)Math.Clamp(timeout.TotalMilliseconds, 0, int.MaxValue)) > 0 && EventFd.Clear(_descriptor);
    }

    /// <summary>Closes it. A VM where it is registered keeps its own reference.</summary>
    public void Dispose() => _descriptor.Dispose();
}
