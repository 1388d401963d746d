using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct rlimit</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct RLimit
{
    public ulong rlim_cur;
    public ulong rlim_max;
}

/// <summary>Limits of this process: <c>getrlimit(2)</c> and <c>setrlimit(2)</c>.</summary>
internal static unsafe partial class ResourceLimit
{
    public const int RLIMIT_NOFILE = 7;

    /// <summary>A limit; 0 or the error number.</summary>
    public static int TryGet(int resource, out RLimit limit)
    {
        fixed (RLimit* pointer = &limit)
            return getrlimit(resource, pointer) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Sets a limit; 0 or the error number.</summary>
    public static int TrySet(int resource, RLimit limit) => setrlimit(resource, &limit) == 0 ? 0 : Marshal.GetLastPInvokeError();

    [LibraryImport("libc", SetLastError = true)]
    private static partial int getrlimit(int resource, RLimit* rlim);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setrlimit(int resource, RLimit* rlim);
}
