using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>eventfd(2)</c>: wakes a thread that sleeps in <c>poll(2)</c>.</summary>
internal static unsafe partial class EventFd
{
    public const int EFD_CLOEXEC = 0x80000;
    public const int EFD_NONBLOCK = 0x800;

    public static SafeDescriptor Create()
    {
        var number = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return number >= 0 ? new SafeDescriptor(number) : throw new SyscallException("eventfd", Marshal.GetLastPInvokeError(), "Creating an eventfd");
    }

    /// <summary>Whether a descriptor that another process passed is an eventfd.</summary>
    public static bool IsEventFd(SafeDescriptor descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        return string.Equals(Descriptor.PathOf(lease.Number), "anon_inode:[eventfd]", StringComparison.Ordinal);
    }

    /// <summary>Makes the descriptor readable until it is read. Never blocks; a full counter is readable already.</summary>
    public static void Signal(SafeDescriptor descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        ulong one = 1;
        _ = write(lease.Number, &one, sizeof(ulong));
    }

    /// <summary>Makes the descriptor unreadable until it is signalled again; true where it was signalled.</summary>
    public static bool Clear(SafeDescriptor descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        ulong count;
        return Descriptor.TryRead(lease.Number, &count, sizeof(ulong)) == sizeof(ulong);
    }

    /// <summary>
    /// <see cref="Signal"/> for a descriptor that another process shares, which can make it blocking and fill its counter at any time. A full
    /// counter is signalled already. Where the other process fills it at this very moment, the call waits, until <see cref="LetWritersGo"/>.
    /// </summary>
    public static void SignalShared(SafeDescriptor descriptor)
    {
        if (HasRoom(descriptor)) Signal(descriptor);
    }

    /// <summary><see cref="Clear"/> for a descriptor that another process shares, which can make it blocking and empty it at any time. Never blocks.</summary>
    public static bool ClearShared(SafeDescriptor descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        ulong count;
        var bytes = Descriptor.TryReadNoWait(lease.Number, &count, sizeof(ulong));
        // Linux before 5.8.
        if (bytes == -Errno.EOPNOTSUPP && (Readiness(descriptor) & Poll.POLLIN) != 0) bytes = Descriptor.TryRead(lease.Number, &count, sizeof(ulong));
        return bytes == sizeof(ulong);
    }

    /// <summary>Has a thread go on that waits in <see cref="SignalShared"/>; the descriptor stays readable.</summary>
    public static void LetWritersGo(SafeDescriptor descriptor)
    {
        if (HasRoom(descriptor)) return;
        ClearShared(descriptor);
        SignalShared(descriptor);
    }

    private static bool HasRoom(SafeDescriptor descriptor) => (Readiness(descriptor) & Poll.POLLOUT) != 0;

    private static short Readiness(SafeDescriptor descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLIN | Poll.POLLOUT }];
        // An eventfd is always ready for one of them: nothing is an interruption.
        while (Poll.Wait(entry, 0) == 0)
        {
        }

        return entry[0].revents;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int eventfd(uint initval, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int fd, void* buf, nuint count);
}
