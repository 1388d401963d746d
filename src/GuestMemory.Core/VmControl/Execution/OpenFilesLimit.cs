using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>Raises the soft limit of open files to the hard limit until the last object of this kind is disposed.</summary>
internal sealed class OpenFilesLimit : IDisposable
{
    private static readonly Lock s_lock = new();
    private static RLimit s_before;
    private static int s_holders;

    private int _disposed;

    private OpenFilesLimit()
    {
    }

    /// <exception cref="SyscallException">The limit cannot be read or set.</exception>
    public static OpenFilesLimit Raise()
    {
        lock (s_lock)
        {
            if (s_holders == 0)
            {
                Check(ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out s_before), "getrlimit");
                if (s_before.rlim_cur < s_before.rlim_max) Check(ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, s_before with { rlim_cur = s_before.rlim_max }), "setrlimit");
            }

            s_holders++;
            return new OpenFilesLimit();
        }
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        lock (s_lock)
        {
            if (--s_holders == 0 && s_before.rlim_cur < s_before.rlim_max) _ = ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, s_before);
        }
    }

    private static void Check(int error, string function)
    {
        if (error != 0) throw new SyscallException(function, error, "Raising the limit of open files");
    }
}
