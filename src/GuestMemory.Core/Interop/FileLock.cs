using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct flock</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FLock
{
    public short l_type;
    public short l_whence;
    public long l_start;
    public long l_len;
    public int l_pid;
}

/// <summary>Locks of bytes that an open file has, and not a process: <c>fcntl(2)</c>, open file description locks.</summary>
internal static unsafe partial class FileLock
{
    public const int F_OFD_GETLK = 36;
    public const int F_OFD_SETLK = 37;
    public const short F_RDLCK = 0;
    public const short F_WRLCK = 1;
    public const short F_UNLCK = 2;

    /// <summary>Locks a byte, which others may share; 0 or the error number: EAGAIN where another open file has it for itself.</summary>
    public static int TryShare(SafeHandle file, long place) => Call(file, F_OFD_SETLK, new FLock { l_type = F_RDLCK, l_start = place, l_len = 1 }, out _);

    /// <summary>Gives all locks of bytes up.</summary>
    public static void Release(SafeHandle file) => Call(file, F_OFD_SETLK, new FLock { l_type = F_UNLCK }, out _);

    /// <summary>Looks whether another open file has locked a byte, shared or not; 0 or the error number, EAGAIN where one has.</summary>
    public static int TryTest(SafeHandle file, long place) =>
        Call(file, F_OFD_GETLK, new FLock { l_type = F_WRLCK, l_start = place, l_len = 1 }, out var found) is var error and not 0 ? error : found.l_type == F_UNLCK ? 0 : Errno.EAGAIN;

    private static int Call(SafeHandle file, int command, FLock value, out FLock found)
    {
        using var lease = new DescriptorLease(file);
        int result;
        do result = fcntl(lease.Number, command, &value);
        while (result != 0 && Marshal.GetLastPInvokeError() == Errno.EINTR);
        found = value;
        return result == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(int fd, int cmd, FLock* arg);
}
