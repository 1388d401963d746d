namespace GuestMemory.Core.Interop;

/// <summary>A system call that failed: which, with which error number, what was tried, and what an admin can do about it.</summary>
public sealed class SyscallException : GuestMemoryException
{
    /// <param name="function">The C name of the function ("mmap").</param>
    /// <param name="errorCode">The error number it left in errno.</param>
    /// <param name="attempted">What was tried, as the subject of a sentence: "mapping 4096 bytes of /tmp/x".</param>
    /// <param name="error">The kind of error, where it has a name of its own.</param>
    /// <param name="remedy">What helps, as a sentence.</param>
    public SyscallException(string function, int errorCode, string attempted, GuestMemoryError error = GuestMemoryError.SyscallFailed, string? remedy = null)
        : base(error, Format(function, errorCode, attempted, remedy))
    {
        Function = function;
        ErrorCode = errorCode;
        Attempted = attempted;
        Remedy = remedy;
    }

    /// <summary>The C name of the function that failed.</summary>
    public string Function { get; }

    /// <summary>The error number, see <see cref="Errno"/>.</summary>
    public int ErrorCode { get; }

    /// <summary>The error number's symbolic name.</summary>
    public string ErrnoName => Errno.Name(ErrorCode);

    /// <summary>What was tried.</summary>
    public string Attempted { get; }

    /// <summary>What an admin can do, or null where there is nothing to say.</summary>
    public string? Remedy { get; }

    private static string Format(string function, int errorCode, string attempted, string? remedy)
    {
        var text = System.Runtime.InteropServices.Marshal.GetPInvokeErrorMessage(errorCode);
        var message = $"{attempted} failed: {text} ({function}: {Errno.Name(errorCode)}).";
        return remedy is null ? message : $"{message} {remedy}";
    }
}
