using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>A file that is memory, a memfd for example (crosvm's <c>SharedMemory</c>).</summary>
/// <param name="Descriptor">The file.</param>
/// <param name="Size">Its length in bytes.</param>
public sealed record SharedMemory(SafeHandle Descriptor, ulong Size)
{
    /// <summary>Opens a file that can be mapped; a device has no length, and the size 0.</summary>
    /// <exception cref="GuestMemoryException">NotAFile: a directory, a pipe or a socket.</exception>
    /// <exception cref="IOException">The file does not exist, or cannot be opened.</exception>
    /// <exception cref="UnauthorizedAccessException">This user may not.</exception>
    public static SharedMemory Open(string path, bool writable)
    {
        // Checked first: opening a pipe would wait for its other end.
        if (FileStatus.TryGet(path, out var status, follow: true) == 0 && (status.stx_mode & FileStatus.S_IFMT) is FileStatus.S_IFDIR or FileStatus.S_IFSOCK or FileStatus.S_IFIFO)
            throw new GuestMemoryException(GuestMemoryError.NotAFile, $"{path} is a directory, a pipe or a socket; a file is needed.");
        var file = File.OpenHandle(path, FileMode.Open, writable ? FileAccess.ReadWrite : FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        return new SharedMemory(file, FileStatus.Get(file).stx_size);
    }

    /// <summary>A file that is open, and its length.</summary>
    /// <exception cref="SyscallException">EBADF: the descriptor is not open.</exception>
    public static SharedMemory FromFile(SafeHandle file) => new(file, FileStatus.Get(file).stx_size);
}
