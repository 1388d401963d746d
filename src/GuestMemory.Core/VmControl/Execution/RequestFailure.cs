using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>A request that failed: a chain of messages, the root cause first. The texts are upstream's, and go over the wire.</summary>
internal sealed class RequestFailure(IReadOnlyList<string> messages) : Exception(messages[^1])
{
    public RequestFailure(string message)
        : this([message])
    {
    }

    /// <summary>An error number as upstream shows it.</summary>
    public static RequestFailure Errno(int error) => new(Text(error));

    /// <summary>A mapping's error as upstream's MmapError shows it; its source, an error number, is a message of its own.</summary>
    public static RequestFailure OfMapping(GuestMemoryException exception) => new(exception switch
    {
        SyscallException syscall => [Text(syscall.ErrorCode), $"mmap related system call failed: {Text(syscall.ErrorCode)}"],
        { Error: GuestMemoryError.NotPageAligned } => ["requested memory is not page aligned"],
        { Error: GuestMemoryError.InvalidAddress } => ["requested memory out of range"],
        { Error: GuestMemoryError.InvalidOffset } => ["requested offset is out of range of off_t"],
        // Upstream has no such error.
        _ => [exception.Message],
    });

    /// <summary>Executes a step; where it fails, adds its context to the chain.</summary>
    public static T Within<T>(string context, Func<T> action)
    {
        try
        {
            return action();
        }
        catch (Exception exception)
        {
            throw new RequestFailure([.. Chain(exception), context]);
        }
    }

    /// <summary>The messages of an exception.</summary>
    public static IReadOnlyList<string> Chain(Exception exception) => exception switch
    {
        RequestFailure failure => failure.Messages,
        SyscallException syscall => [Text(syscall.ErrorCode)],
        _ => [exception.Message],
    };

    private IReadOnlyList<string> Messages { get; } = messages;

    private static string Text(int error) => $"{Marshal.GetPInvokeErrorMessage(error)} (os error {error})";
}
