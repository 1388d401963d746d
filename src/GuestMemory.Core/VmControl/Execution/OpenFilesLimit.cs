using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>Lets this process open as many files as it may ever, until disposed.</summary>
internal sealed class OpenFilesLimit : IDisposable
{
    private readonly RLimit? _before;

    private OpenFilesLimit(RLimit? before) => _before = before;

    /// <exception cref="SyscallException">The limit cannot be read or set.</exception>
    public static OpenFilesLimit Raise()
    {
        Check(ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var limit), "getrlimit");
        if (limit.rlim_cur >= limit.rlim_max) return new OpenFilesLimit(null);
        Check(ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, limit with { rlim_cur = limit.rlim_max }), "setrlimit");
        return new OpenFilesLimit(limit);
    }

    public void Dispose()
    {
        if (_before is { } limit) _ = ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, limit);
    }

    private static void Check(int error, string function)
    {
        if (error != 0) throw new SyscallException(function, error, "Raising the limit of open files");
    }
}
