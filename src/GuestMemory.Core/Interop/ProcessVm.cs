using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct iovec</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct IoVec
{
    public void* iov_base;
    public nuint iov_len;
}

/// <summary>
/// <c>process_vm_readv(2)</c> and <c>process_vm_writev(2)</c> on the memory of a process, also of this one. Where a direct access would
/// raise a signal (a truncated file, a poisoned page), they fail with EFAULT.
/// </summary>
internal static unsafe partial class ProcessVm
{
    /// <summary>Reads; returns the number of bytes, at least one, or the negated error number.</summary>
    public static nint TryRead(int processId, void* local, nint remote, nuint length)
    {
        var to = new IoVec { iov_base = local, iov_len = length };
        var from = new IoVec { iov_base = (void*)remote, iov_len = length };
        return Result(process_vm_readv(processId, &to, 1, &from, 1, 0));
    }

    /// <summary>The same into a span.</summary>
    public static nint TryRead(int processId, Span<byte> local, ulong remote)
    {
        fixed (byte* first = local) return TryRead(processId, first, (nint)remote, (nuint)local.Length);
    }

    /// <summary>Writes; returns the number of bytes, at least one, or the negated error number.</summary>
    public static nint TryWrite(int processId, void* local, nint remote, nuint length)
    {
        var from = new IoVec { iov_base = local, iov_len = length };
        var to = new IoVec { iov_base = (void*)remote, iov_len = length };
        return Result(process_vm_writev(processId, &from, 1, &to, 1, 0));
    }

    private static nint Result(nint count) => count > 0 ? count : count == 0 ? -Errno.EFAULT : -Marshal.GetLastPInvokeError();

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint process_vm_readv(int pid, IoVec* local_iov, nuint liovcnt, IoVec* remote_iov, nuint riovcnt, nuint flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint process_vm_writev(int pid, IoVec* local_iov, nuint liovcnt, IoVec* remote_iov, nuint riovcnt, nuint flags);
}
