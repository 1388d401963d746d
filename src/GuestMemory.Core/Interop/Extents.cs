using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Where a file has data and where it has holes (<c>lseek(2)</c>).</summary>
internal static partial class Extents
{
    public const int SEEK_DATA = 3;
    public const int SEEK_HOLE = 4;

    /// <summary>The next data from an offset on, or the end of the file; a file system that knows no holes has one extent.</summary>
    public static long NextData(SafeHandle file, long offset, long length) => Seek(file, offset, SEEK_DATA, length, atEnd: length);

    /// <summary>Where the data at an offset ends: always behind the offset, so that a loop over data ends also where a file system answers with the offset itself.</summary>
    public static long NextHole(SafeHandle file, long offset, long length) => Seek(file, offset, SEEK_HOLE, length, atEnd: length) is var end && end > offset ? end : length;

    private static long Seek(SafeHandle file, long offset, int whence, long length, long atEnd)
    {
        using var lease = new DescriptorLease(file);
        var found = lseek(lease.Number, offset, whence);
        if (found >= 0) return Math.Min(found, length);
        // ENXIO: the rest of the file is a hole.
        if (Marshal.GetLastPInvokeError() == Errno.ENXIO) return atEnd;
        return whence == SEEK_DATA ? offset : length;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial long lseek(int fd, long offset, int whence);
}
