using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Copies that the file system makes by sharing blocks, where it can: <c>ioctl_ficlone(2)</c>, <c>copy_file_range(2)</c>.</summary>
internal static unsafe partial class FileCopy
{
    public const uint FICLONE = 0x40049409;

    /// <summary>Makes a file share all of another's blocks; 0 or the error number.</summary>
    public static int TryClone(SafeHandle target, SafeHandle source)
    {
        using var to = new DescriptorLease(target);
        using var from = new DescriptorLease(source);
        return ioctl(to.Number, FICLONE, from.Number) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Copies bytes from one file to another at the same offset; how many, or the negated error number.</summary>
    public static nint TryCopyRange(SafeHandle source, SafeHandle target, ulong offset, nuint length)
    {
        using var to = new DescriptorLease(target);
        using var from = new DescriptorLease(source);
        var (here, there) = ((long)offset, (long)offset);
        var count = copy_file_range(from.Number, &here, to.Number, &there, length, 0);
        return count >= 0 ? count : -Marshal.GetLastPInvokeError();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, nint argument);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint copy_file_range(int fd_in, long* off_in, int fd_out, long* off_out, nuint len, uint flags);
}
