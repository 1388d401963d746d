using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>What a process does to stand on its own: a session without a terminal (<c>setsid(2)</c>) and other standard streams (<c>dup2(2)</c>).</summary>
internal static partial class OwnSession
{
    public const int O_RDONLY = 0;
    public const int O_WRONLY = 1;
    public const int O_CREAT = 0x40;
    public const int O_TRUNC = 0x200;
    public const int O_APPEND = 0x400;
    public const int O_ACCMODE = 3;

    /// <summary>O_TMPFILE without O_DIRECTORY, which alone makes nothing.</summary>
    public const int UnnamedFile = 0x400000;
    public const int F_GETFD = 1;
    public const int F_SETFD = 2;
    public const int F_GETFL = 3;
    public const int F_SETFL = 4;
    public const int FD_CLOEXEC = 1;

    /// <summary>Leaves the terminal and its process group, so that neither Ctrl+C nor its end reaches this process.</summary>
    public static void Begin() => _ = setsid();

    /// <summary>Makes a file with mode 0600, which is emptied, the standard error. It can be read by that too.</summary>
    public static void RedirectErrors(string log)
    {
        using var file = Open(log, Userfaultfd.O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
        Duplicate(file, 2);
    }

    /// <summary>Reads nothing any more, and writes to the standard error what would go to the output.</summary>
    public static void RedirectOthers()
    {
        using var nothing = Open("/dev/null", O_RDONLY);
        Duplicate(nothing, 0);
        if (dup2(2, 1) < 0) throw new SyscallException("dup2", Marshal.GetLastPInvokeError(), "Redirecting the standard output");
    }

    /// <summary>Makes a descriptor that this process was started with its own: closed in every child.</summary>
    /// <exception cref="SyscallException">There is no such descriptor.</exception>
    public static SafeDescriptor Inherit(int number)
    {
        var flags = fcntl(number, F_GETFD, 0);
        return flags >= 0 && fcntl(number, F_SETFD, flags | FD_CLOEXEC) == 0
            ? new SafeDescriptor(number)
            : throw new SyscallException("fcntl", Marshal.GetLastPInvokeError(), $"Taking over descriptor {number}");
    }

    private static void Duplicate(SafeDescriptor descriptor, int number)
    {
        if (dup2(descriptor.Number, number) < 0) throw new SyscallException("dup2", Marshal.GetLastPInvokeError(), "Redirecting a standard stream");
    }

    private static SafeDescriptor Open(string path, int flags)
    {
        var number = open(path, flags | Userfaultfd.O_CLOEXEC, 0b110_000_000);
        return number >= 0 ? new SafeDescriptor(number) : throw new SyscallException("open", Marshal.GetLastPInvokeError(), $"Opening {path}");
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setsid();

    [LibraryImport("libc", SetLastError = true)]
    private static partial int dup2(int oldfd, int newfd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(int fd, int cmd, int arg);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags, uint mode);
}
