using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>What lies at a path: the parts of <c>struct statx</c> that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 256)]
internal struct Statx
{
    [FieldOffset(0)] public uint stx_mask;
    [FieldOffset(4)] public uint stx_blksize;
    [FieldOffset(16)] public uint stx_nlink;
    [FieldOffset(20)] public uint stx_uid;
    [FieldOffset(24)] public uint stx_gid;
    [FieldOffset(28)] public ushort stx_mode;
    [FieldOffset(32)] public ulong stx_ino;
    [FieldOffset(40)] public ulong stx_size;
    [FieldOffset(48)] public ulong stx_blocks;
    [FieldOffset(112)] public StatxTimestamp stx_mtime;
    [FieldOffset(136)] public uint stx_dev_major;
    [FieldOffset(140)] public uint stx_dev_minor;
}

/// <summary>A time of <see cref="Statx"/>, since 1970.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct StatxTimestamp
{
    public long tv_sec;
    public uint tv_nsec;

    /// <summary>Nanoseconds since 1970, of times up to the year 2262.</summary>
    public readonly long Nanoseconds => unchecked(tv_sec * 1_000_000_000 + tv_nsec);
}

/// <summary><c>statx(2)</c>, <c>fstatfs(2)</c> and the rights on a path.</summary>
internal static unsafe partial class FileStatus
{
    public const int AT_FDCWD = -100;
    public const int AT_SYMLINK_NOFOLLOW = 0x100;
    public const int AT_EMPTY_PATH = 0x1000;
    public const int O_PATH = 0x200000;
    public const uint STATX_BASIC_STATS = 0x7ff;
    public const int S_IFMT = 0xF000;
    public const int S_IFSOCK = 0xC000;
    public const int S_IFLNK = 0xA000;
    public const int S_IFREG = 0x8000;
    public const int S_IFDIR = 0x4000;
    public const int S_IFIFO = 0x1000;
    public const int S_ISVTX = 0x200;
    public const int S_IWOTH = 2;
    public const long HUGETLBFS_MAGIC = 0x958458f6;

    private static int NoFollow => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 0x8000 : 0x20000;

    /// <summary>The status of a path, without following a last symbolic link unless asked to; 0 or the error number.</summary>
    public static int TryGet(string path, out Statx status, bool follow = false)
    {
        fixed (Statx* pointer = &status)
            return statx(AT_FDCWD, path, follow ? 0 : AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, pointer) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Whether there is something that is not a file: a directory, a device, a pipe or a socket, or a link to one.</summary>
    public static bool IsSpecial(string path) => TryGet(path, out var status, follow: true) == 0 && (status.stx_mode & S_IFMT) != S_IFREG;

    /// <summary>The status of an open file.</summary>
    public static Statx Get(SafeHandle file)
    {
        using var lease = new DescriptorLease(file);
        Statx status;
        return statx(lease.Number, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &status) == 0
            ? status
            : throw new SyscallException("statx", Marshal.GetLastPInvokeError(), "Reading a file's status");
    }

    /// <summary>The page size of the hugetlbfs that holds the file, or 0 for any other file system.</summary>
    public static long HugetlbfsPageSize(SafeHandle file)
    {
        using var lease = new DescriptorLease(file);
        var status = stackalloc long[32];   // struct statfs: f_type and f_bsize come first; 120 bytes in all
        return fstatfs(lease.Number, status) == 0 && status[0] == HUGETLBFS_MAGIC ? status[1] : 0;
    }

    /// <summary>The bytes that the kernel maps of a file: it rounds huge pages up when it maps them, but not when it unmaps them.</summary>
    public static nuint MappedLength(SafeHandle file, ulong length) =>
        HugetlbfsPageSize(file) is var pageSize and not 0 ? (nuint)HostPage.RoundUp(length, (ulong)pageSize) : (nuint)length;

    /// <summary>A descriptor of what lies at a path, also a last symbolic link, that stays with it whatever the path names later (O_PATH); null with the error number.</summary>
    public static SafeDescriptor? TryOpenPath(string path, out int error)
    {
        var number = open(path, O_PATH | NoFollow | Userfaultfd.O_CLOEXEC);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeDescriptor(number);
    }

    /// <summary>Gives the file of an O_PATH descriptor to a user, a group, or both; what is uint.MaxValue stays. 0 or the error number.</summary>
    public static int TryChangeOwner(SafeDescriptor file, uint user, uint group = uint.MaxValue)
    {
        using var lease = new DescriptorLease(file);
        return fchownat(lease.Number, "", user, group, AT_EMPTY_PATH) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Sets the mode of the file of an O_PATH descriptor; 0 or the error number.</summary>
    public static int TryChangeMode(SafeDescriptor file, uint mode)
    {
        using var lease = new DescriptorLease(file);
        // fchmod(2) takes none.
        return TryChangeMode($"/proc/self/fd/{lease.Number}", mode);
    }

    /// <summary>Sets the mode of a path; 0 or the error number.</summary>
    public static int TryChangeMode(string path, uint mode) => chmod(path, mode) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Makes a directory with a mode; 0 or the error number.</summary>
    public static int TryMakeDirectory(string path, uint mode) => mkdir(path, mode) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Gives a file another name; 0 or the error number, EEXIST where something has it.</summary>
    public static int TryLink(string path, string name) => link(path, name) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Whether this process may open the path for reading and writing.</summary>
    public static bool CanReadWrite(string path) => access(path, 6) == 0;

    /// <summary>Whether this thread may read the path.</summary>
    public static bool CanRead(string path) => access(path, 4) == 0;

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int statx(int dirfd, string pathname, int flags, uint mask, Statx* statxbuf);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fstatfs(int fd, void* buf);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int fchownat(int dirfd, string pathname, uint owner, uint group, int flags);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int chmod(string pathname, uint mode);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int mkdir(string pathname, uint mode);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int link(string oldpath, string newpath);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int access(string pathname, int mode);
}
