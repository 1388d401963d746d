using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Memory that is a file: <c>memfd_create(2)</c> and its seals.</summary>
internal static partial class Memfd
{
    public const uint MFD_CLOEXEC = 1;
    public const uint MFD_ALLOW_SEALING = 2;
    public const uint MFD_HUGETLB = 4;

    public const int F_ADD_SEALS = 1033;
    public const int F_GET_SEALS = 1034;
    public const int F_SEAL_SEAL = 1;
    public const int F_SEAL_SHRINK = 2;
    public const int F_SEAL_GROW = 4;
    public const int F_SEAL_WRITE = 8;

    /// <summary>
    /// A memfd of exactly <paramref name="length"/> bytes, sealed against shrinking, growing and further seals, so that its
    /// mapping can never raise SIGBUS. <paramref name="hugePageShift"/> 0 means ordinary pages.
    /// </summary>
    public static SafeDescriptor CreateSealed(string name, long length, int hugePageShift)
    {
        var flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
        if (hugePageShift != 0) flags |= MFD_HUGETLB | (uint)hugePageShift << Mman.MAP_HUGE_SHIFT;
        var number = memfd_create(name, flags);
        if (number < 0)
        {
            var error = Marshal.GetLastPInvokeError();
            throw new SyscallException("memfd_create", error, $"Creating memfd '{name}'", hugePageShift != 0 && error is Errno.ENODEV or Errno.EINVAL
                ? GuestMemoryError.HugePageSizeUnsupported : GuestMemoryError.SyscallFailed, error == Errno.EMFILE ? "Raise the limit of open files ('ulimit -n')." : null);
        }

        var descriptor = new SafeDescriptor(number);
        try
        {
            if (ftruncate(number, length) != 0) throw new SyscallException("ftruncate", Marshal.GetLastPInvokeError(), $"Setting the length of memfd '{name}' to {length} bytes");
            if (fcntl(number, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 || fcntl(number, F_ADD_SEALS, F_SEAL_SEAL) != 0)
                throw new SyscallException("fcntl", Marshal.GetLastPInvokeError(), $"Sealing memfd '{name}'");
            return descriptor;
        }
        catch
        {
            descriptor.Dispose();
            throw;
        }
    }

    /// <summary>The same file, open for reading alone, with a place of its own in it. It needs /proc.</summary>
    /// <exception cref="SyscallException">It cannot be opened.</exception>
    public static SafeDescriptor OpenReadOnly(SafeHandle file)
    {
        using var lease = new DescriptorLease(file);
        var number = open($"/proc/self/fd/{lease.Number}", Userfaultfd.O_CLOEXEC);
        return number >= 0 ? new SafeDescriptor(number) : throw new SyscallException("open", Marshal.GetLastPInvokeError(), "Opening a memfd for reading");
    }

    /// <summary>The seals of a file, or 0 where it cannot have any.</summary>
    public static int Seals(SafeHandle file)
    {
        using var lease = new DescriptorLease(file);
        return Math.Max(0, fcntl(lease.Number, F_GET_SEALS, 0));
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int memfd_create(string name, uint flags);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ftruncate(int fd, long length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(int fd, int cmd, int arg);
}
