using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>A file read, written and changed at positions: <c>preadv(2)</c>, <c>pwritev2(2)</c>, <c>fdatasync(2)</c>, <c>fallocate(2)</c>.</summary>
internal static unsafe partial class PositionedIo
{
    public const int RWF_DSYNC = 2;
    public const int FALLOC_FL_KEEP_SIZE = 1;
    public const int FALLOC_FL_PUNCH_HOLE = 2;
    public const int FALLOC_FL_ZERO_RANGE = 16;

    /// <summary>Reads once; the number of bytes, or the negated error number.</summary>
    public static nint TryRead(int file, IoVec* pieces, int count, long offset) => Result(preadv(file, pieces, count, offset));

    /// <summary>Reads once into a span; the number of bytes, or the negated error number.</summary>
    public static nint TryRead(SafeHandle file, Span<byte> bytes, ulong offset)
    {
        using var lease = new DescriptorLease(file);
        fixed (byte* first = bytes)
        {
            var piece = new IoVec { iov_base = first, iov_len = (nuint)bytes.Length };
            return TryRead(lease.Number, &piece, 1, (long)offset);
        }
    }

    /// <summary>Writes once; the number of bytes, or the negated error number.</summary>
    public static nint TryWrite(int file, IoVec* pieces, int count, long offset, int flags) =>
        Result(flags == 0 ? pwritev(file, pieces, count, offset) : pwritev2(file, pieces, count, offset, flags));

    /// <summary>Has what was written lie on the disk; 0, or the negated error number.</summary>
    public static nint TrySync(int file) => Result(fdatasync(file));

    /// <summary>Allocates, frees or zeroes a range, as the mode says; 0, or the negated error number.</summary>
    public static nint TryAllocate(int file, int mode, long offset, long length) => Result(fallocate(file, mode, offset, length));

    private static nint Result(nint count) => count >= 0 ? count : -Marshal.GetLastPInvokeError();

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint preadv(int fd, IoVec* iov, int iovcnt, long offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint pwritev(int fd, IoVec* iov, int iovcnt, long offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint pwritev2(int fd, IoVec* iov, int iovcnt, long offset, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fdatasync(int fd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fallocate(int fd, int mode, long offset, long length);
}
