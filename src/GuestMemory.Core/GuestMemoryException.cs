namespace GuestMemory.Core;

/// <summary>An error of this library. <see cref="Error"/> names its kind; the message says what was tried and what helps.</summary>
public class GuestMemoryException : Exception
{
    /// <summary>An error of a kind, with a message for an admin.</summary>
    public GuestMemoryException(GuestMemoryError error, string message, Exception? innerException = null)
        : base(message, innerException) => Error = error;

    /// <summary>The kind of error.</summary>
    public GuestMemoryError Error { get; }

    /// <summary>The address that the error is about, where there is one: a guest address, or an offset, as the message says.</summary>
    public ulong? Address { get; init; }
}
