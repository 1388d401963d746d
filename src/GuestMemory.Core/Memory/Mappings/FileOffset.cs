using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>The file behind a region, and where in it the region starts (vm-memory's FileOffset).</summary>
public sealed class FileOffset
{
    private FileOffset(SafeFileHandle file, ulong start, (uint, uint, ulong) identity)
    {
        File = file;
        Start = start;
        Identity = identity;
    }

    /// <summary>The file. It belongs to the region and is closed with it; duplicate it to keep it longer.</summary>
    public SafeFileHandle File { get; }

    /// <summary>Where the region starts in the file, in bytes.</summary>
    public ulong Start { get; }

    /// <summary>The device and inode: what makes two descriptors the same file.</summary>
    internal (uint Major, uint Minor, ulong Inode) Identity { get; }

    /// <summary>Where in which file, for debuggers: "0x1000 in inode 42 of device 8:1".</summary>
    public override string ToString() => $"0x{Start:x} in inode {Identity.Inode} of device {Identity.Major}:{Identity.Minor}";

    /// <summary>A descriptor of its own for an open file.</summary>
    internal static FileOffset Duplicate(SafeHandle file, ulong start)
    {
        var status = FileStatus.Get(file);
        return new FileOffset(Descriptor.Duplicate(file), start, (status.stx_dev_major, status.stx_dev_minor, status.stx_ino));
    }
}
