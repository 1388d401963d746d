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

    [LibraryImport("libc", SetLastError = true)]
    private static partial int eventfd(uint initval, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int fd, void* buf, nuint count);
}
