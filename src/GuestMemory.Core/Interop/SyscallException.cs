namespace GuestMemory.Core.Interop;

/// <summary>A failed system call: the function, the error number, the operation that was attempted, and the remedy.</summary>
public sealed class SyscallException : GuestMemoryException
{
    /// <param name="function">The C name of the function ("mmap").</param>
    /// <param name="errorCode">The error number, from errno.</param>
    /// <param name="attempted">The attempted operation, as the subject of a sentence: "Mapping 4096 bytes of /tmp/x".</param>
    /// <param name="error">The kind of error, where there is one for it.</param>
    /// <param name="remedy">The remedy, as a sentence.</param>
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

    /// <summary>The attempted operation.</summary>
    public string Attempted { get; }

    /// <summary>The remedy, or null where none is known.</summary>
    public string? Remedy { get; }

    private static string Format(string function, int errorCode, string attempted, string? remedy)
    {
        var text = System.Runtime.InteropServices.Marshal.GetPInvokeErrorMessage(errorCode);
        var message = $"{attempted} failed: {text} ({function}: {Errno.Name(errorCode)}).";
        return remedy is null ? message : $"{message} {remedy}";
    }
}
