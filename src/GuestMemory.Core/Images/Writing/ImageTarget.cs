using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>What is checked of the place of an image before anything is written.</summary>
internal static class ImageTarget
{
    // Their pages take less room than they have.
    private static readonly string[] s_compressing = ["btrfs", "zfs", "bcachefs", "f2fs"];

    /// <summary>Refuses a place where no image may be, or where one is that is to stay.</summary>
    /// <exception cref="GuestMemoryException">FileExists; NotAFile; TargetIsMapped.</exception>
    /// <exception cref="DirectoryNotFoundException">Its folder does not exist.</exception>
    public static void Check(GuestMemoryMmap memory, string path, bool overwrite)
    {
        RefuseSharedLink(path);
        RefuseBacking(memory, path);
        RawImage.CheckTarget(path, overwrite);
    }

    /// <summary>Refuses a symbolic link in a folder in which everyone may make one: it may have been laid there by another user.</summary>
    /// <exception cref="GuestMemoryException">NotAFile.</exception>
    public static void RefuseSharedLink(string path)
    {
        if (FileStatus.TryGet(path, out var status) != 0 || (status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFLNK) return;
        var folder = Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/";
        if (FileStatus.TryGet(folder, out var shared, follow: true) == 0 && (shared.stx_mode & FileStatus.S_IWOTH) != 0)
            throw new GuestMemoryException(GuestMemoryError.NotAFile, $"{path} is a symbolic link in a folder that every user may write to: another user may have laid it there. Give another path.");
    }

    /// <summary>Refuses the file behind a region, by whatever name: what is exported would change, or lose its file.</summary>
    /// <exception cref="GuestMemoryException">TargetIsMapped.</exception>
    public static void RefuseBacking(GuestMemoryMmap memory, string path)
    {
        if (FileStatus.TryGet(path, out var status, follow: true) != 0) return;
        var target = (status.stx_dev_major, status.stx_dev_minor, status.stx_ino);
        if (memory.Regions.FirstOrDefault(region => region.GetFileOffset()?.Identity == target) is { } region)
            throw new GuestMemoryException(GuestMemoryError.TargetIsMapped, $"{path} is the file behind the region {region}, which is to be written to it. Give another path.");
    }

    /// <summary>
    /// Refuses a sparse image that cannot fit. Where the whole memory would fit nothing is counted; otherwise the pages that are not zero are: those
    /// alone take room.
    /// </summary>
    /// <exception cref="GuestMemoryException">DiskFull; PageNotAccessible.</exception>
    public static void RequireSpaceFor(GuestMemoryMmap memory, string path, CancellationToken cancellation)
    {
        if (FreeSpace(path) is not { } free || memory.Size <= free) return;
        var page = (int)HostPage.Size;
        ulong needed = 0;
        var reader = new RegionReader(memory, null, cancellation);
        foreach (var region in memory.Regions)
        {
            reader.Copy(region, (_, piece) =>
            {
                for (var at = 0; at < piece.Length; at += page)
                {
                    var end = Math.Min(at + page, piece.Length);
                    if (piece[at..end].ContainsAnyExcept((byte)0)) needed += (ulong)(end - at);
                }
            });
        }

        RequireSpace(path, needed);
    }

    /// <summary>Refuses a file that takes at least so many bytes where those are not free.</summary>
    /// <exception cref="GuestMemoryException">DiskFull.</exception>
    public static void RequireSpace(string path, ulong needed)
    {
        if (FreeSpace(path) is { } free && needed > free)
            throw new GuestMemoryException(GuestMemoryError.DiskFull, $"{path} takes at least {needed} bytes, and {free} are free there. Nothing was written.");
    }

    /// <summary>Whether a write failed since no room is left, or none that this user may take.</summary>
    public static bool IsDiskFull(IOException exception) => exception.HResult is Errno.ENOSPC or Errno.EDQUOT;

    /// <summary>The error of such a write.</summary>
    public static GuestMemoryException DiskFull(IOException exception, string path) => new(GuestMemoryError.DiskFull,
        $"{path} could not be written: {(exception.HResult == Errno.EDQUOT ? "the quota of this user is used up" : "no room is left on its file system")}.", exception);

    /// <summary>The bytes that are free where a file is to lie, those kept for root among them; null where that says nothing.</summary>
    private static ulong? FreeSpace(string path)
    {
        try
        {
            var drive = new DriveInfo(Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/");
            // A tmpfs without a limit has no size.
            return drive.TotalSize == 0 || s_compressing.Contains(drive.DriveFormat, StringComparer.Ordinal) ? null : (ulong)drive.TotalFreeSpace;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
