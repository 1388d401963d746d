namespace GuestMemory.Core;

/// <summary>A transfer that ended early (vm-memory's PartialBuffer). What was transferred stays so.</summary>
public sealed class PartialBufferException : GuestMemoryException
{
    internal PartialBufferException(ulong expected, ulong completed, string? message = null)
        : base(GuestMemoryError.PartialBuffer, message ?? $"Only {completed} of {expected} bytes could be transferred.")
    {
        Expected = expected;
        Completed = completed;
    }

    /// <summary>The bytes that were asked for.</summary>
    public ulong Expected { get; }

    /// <summary>The bytes that were transferred.</summary>
    public ulong Completed { get; }
}
