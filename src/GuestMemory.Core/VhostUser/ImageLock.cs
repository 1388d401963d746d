using System.Globalization;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// Keeps programs that write one image apart, by the locks of QEMU's file driver (raw_check_lock_bytes in block/file-posix.c), which its guests,
/// qemu-img and qemu-storage-daemon take: an open file shares the lock of byte 100 + n for each permission n that it uses, and of 200 + n for each
/// that it grants nobody else. It may go on where nobody else has locked the opposite bytes. Each opening of a file counts for itself, also in one process.
/// </summary>
internal static class ImageLock
{
    // The permissions of block/block-common.h, as numbers of their bits.
    private const int ConsistentRead = 0;
    private const int Write = 1;
    private const int Resize = 3;

    private const int Uses = 100;
    private const int Denies = 200;

    /// <summary>Reserves the image, for writing or for reading alone, until <see cref="Release"/> or until it is closed; nothing where its file system has no locks.</summary>
    /// <exception cref="GuestMemoryException">ImageInUse; the message names the process.</exception>
    public static void Take(SafeFileHandle image, bool isReadOnly)
    {
        int[] used = isReadOnly ? [ConsistentRead] : [ConsistentRead, Write];
        int[] denied = [Write, Resize];
        string? file = null;
        try
        {
            foreach (var place in used.Select(static n => Uses + n).Concat(denied.Select(static n => Denies + n)))
            {
                var error = FileLock.TryShare(image, place);
                if (error == Errno.EAGAIN) throw InUse(image, file, place);
                // NFS without a lock daemon, FUSE without locks: QEMU's choice is the user's (locking=off), and this one, too, has no other.
                if (error != 0) return;
                file ??= LockOf(image);
            }

            foreach (var place in denied.Select(static n => Uses + n).Concat(used.Select(static n => Denies + n)))
            {
                if (FileLock.TryTest(image, place) == Errno.EAGAIN) throw InUse(image, file, place);
            }
        }
        catch
        {
            Release(image);
            throw;
        }
    }

    /// <summary>Leaves the image to others.</summary>
    public static void Release(SafeFileHandle image) => FileLock.Release(image);

    private static GuestMemoryException InUse(SafeFileHandle image, string? file, int place)
    {
        using var lease = new DescriptorLease(image);
        var what = place switch
        {
            Uses + Write => "writes it",
            Uses + Resize => "may change its size",
            Denies + ConsistentRead => "lets no other process read it",
            Denies + Write => "lets no other process write it",
            _ => "has locked it",
        };
        var holder = file is null ? null : HolderOf(file, place, lease.Number);
        return new GuestMemoryException(GuestMemoryError.ImageInUse, $"The disk image {Descriptor.PathOf(lease.Number)} is in use: {holder ?? "another process"} {what}. Stop that first.");
    }

    /// <summary>How the kernel names the file in lists of locks ("fe:00:1234"); null where /proc does not tell.</summary>
    private static string? LockOf(SafeFileHandle image)
    {
        using var lease = new DescriptorLease(image);
        return LocksOf($"/proc/self/fdinfo/{lease.Number}").Select(static found => found.File).FirstOrDefault();
    }

    /// <summary>The process that has locked a byte; null where it is another user's, or gone.</summary>
    private static string? HolderOf(string file, int place, int own)
    {
        foreach (var process in Entries("/proc").Select(Path.GetFileName).Where(static name => int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out _)))
        {
            var isOwn = process == Environment.ProcessId.ToString(CultureInfo.InvariantCulture);
            foreach (var descriptor in Entries($"/proc/{process}/fd"))
            {
                var number = Path.GetFileName(descriptor);
                // Sockets and pipes have no locks.
                if ((isOwn && number == own.ToString(CultureInfo.InvariantCulture)) || !IsFile(descriptor)) continue;
                if (!LocksOf($"/proc/{process}/fdinfo/{number}").Any(found => found.File == file && found.First <= place && place <= found.Last)) continue;
                return isOwn ? "this process, by another opening of the file," : $"process {process}{(TryRead($"/proc/{process}/comm") is [var name, ..] ? $" ({name})" : "")}";
            }
        }

        return null;
    }

    /// <summary>The locks of an open file: <c>lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101</c>.</summary>
    private static IEnumerable<(string File, long First, long Last)> LocksOf(string path)
    {
        foreach (var line in TryRead(path))
        {
            if (!line.StartsWith("lock:", StringComparison.Ordinal) || line.Split(' ', StringSplitOptions.RemoveEmptyEntries) is not [.., var file, var first, var last]) continue;
            if (!long.TryParse(first, NumberStyles.None, CultureInfo.InvariantCulture, out var from)) continue;
            yield return (file, from, long.TryParse(last, NumberStyles.None, CultureInfo.InvariantCulture, out var to) ? to : long.MaxValue);
        }
    }

    /// <summary>What is in a directory of /proc; nothing where this user may not look, or the process has ended.</summary>
    private static string[] Entries(string directory)
    {
        try
        {
            return Directory.GetFileSystemEntries(directory);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    private static bool IsFile(string descriptor)
    {
        try
        {
            return new FileInfo(descriptor).LinkTarget?.StartsWith('/') == true;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    private static string[] TryRead(string path)
    {
        try
        {
            return File.ReadAllLines(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }
}
