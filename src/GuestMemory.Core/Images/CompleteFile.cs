using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>Files whose names never stand for half of what is to be in them.</summary>
internal static class CompleteFile
{
    // 0600
    private const uint OfOwner = 0b110_000_000;

    /// <summary>Writes a file beside its place, and renames it when it is complete; where that fails, what was there stays.</summary>
    /// <param name="path">Its place.</param>
    /// <param name="overwrite">Whether it takes the place of a file that is there.</param>
    /// <param name="write">Writes it, and flushes it where it must outlive a crash of the host.</param>
    /// <exception cref="GuestMemoryException">FileExists: a file has come to its place meanwhile. DiskFull.</exception>
    /// <exception cref="UnauthorizedAccessException">No file can be created in its folder.</exception>
    public static T Write<T>(string path, bool overwrite, Func<SafeFileHandle, T> write)
    {
        var folder = Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/";
        var beside = Path.Combine(folder, $".{Path.GetFileName(path)}.{Guid.NewGuid():N}.part");
        var file = Create(beside, path, folder);
        try
        {
            T written;
            using (file) written = write(file.SafeFileHandle);
            try
            {
                File.Move(beside, path, overwrite);
            }
            catch (IOException) when (!overwrite && Path.Exists(path))
            {
                throw RawImage.FileExists(path);
            }

            return written;
        }
        catch (Exception exception)
        {
            File.Delete(beside);
            if (exception is IOException full && ImageTarget.IsDiskFull(full)) throw ImageTarget.DiskFull(full, path);
            throw;
        }
    }

    private static FileStream Create(string beside, string path, string folder)
    {
        try
        {
            // It may hold the memory of a VM, and with it keys: nobody else may open it at any time. A descriptor of it outlives a change of its mode.
            var file = new FileStream(beside, new FileStreamOptions
            {
                Mode = FileMode.CreateNew,
                Access = FileAccess.ReadWrite,
                Share = FileShare.None,
                BufferSize = 0,
#pragma warning disable CA1416 // This library is for Linux.
                UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
#pragma warning restore CA1416
            });
            // A file system without modes is refused.
            if (FileStatus.TryChangeMode(beside, OfOwner) is var error and not 0)
            {
                file.Dispose();
                File.Delete(beside);
                throw new SyscallException("chmod", error, $"Keeping {path} from other users");
            }

            return file;
        }
        catch (UnauthorizedAccessException exception)
        {
            throw new UnauthorizedAccessException($"{path} cannot be written: this user may not create files in {folder}.", exception);
        }
    }
}
