using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Interop;

/// <summary>Operations on any descriptor: <c>read(2)</c>, <c>write(2)</c>, and a duplicate by <c>fcntl(2)</c>.</summary>
internal static unsafe partial class Descriptor
{
    public const int F_DUPFD_CLOEXEC = 1030;
    public const int RWF_NOWAIT = 8;

    /// <summary>A second descriptor of the same open file.</summary>
    public static SafeFileHandle Duplicate(SafeHandle descriptor)
    {
        using var lease = new DescriptorLease(descriptor);
        var number = fcntl(lease.Number, F_DUPFD_CLOEXEC, 0);
        return number >= 0
            ? new SafeFileHandle(number, ownsHandle: true)
            : throw new SyscallException("fcntl(F_DUPFD_CLOEXEC)", Marshal.GetLastPInvokeError(), "Duplicating a descriptor", remedy: "Raise the limit of open files ('ulimit -n').");
    }

    /// <summary>The path of an open file, or "file" where /proc does not tell.</summary>
    public static string PathOf(int descriptor) => new FileInfo($"/proc/self/fd/{descriptor}").LinkTarget ?? "file";

    /// <summary>Reads once, again after EINTR; the number of bytes, or the negated error number.</summary>
    public static nint TryRead(int descriptor, void* buffer, nuint length)
    {
        nint count;
        do count = Result(read(descriptor, buffer, length));
        while (count == -Errno.EINTR);
        return count;
    }

    /// <summary>
    /// Reads once and never waits, also where another process that shares the descriptor has made it blocking; the number of bytes, or the negated
    /// error number: EOPNOTSUPP where the kernel cannot do so with this kind of descriptor.
    /// </summary>
    public static nint TryReadNoWait(int descriptor, void* buffer, nuint length)
    {
        var vector = new IoVec { iov_base = buffer, iov_len = length };
        return Result(preadv2(descriptor, &vector, 1, -1, RWF_NOWAIT));
    }

    /// <summary>Writes once, again after EINTR; the number of bytes, or the negated error number.</summary>
    public static nint TryWrite(int descriptor, void* buffer, nuint length)
    {
        nint count;
        do count = Result(write(descriptor, buffer, length));
        while (count == -Errno.EINTR);
        return count;
    }

    private static nint Result(nint count) => count >= 0 ? count : -Marshal.GetLastPInvokeError();

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(int fd, int cmd, int arg);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint read(int fd, void* buf, nuint count);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint preadv2(int fd, IoVec* iov, int iovcnt, long offset, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int fd, void* buf, nuint count);
}
