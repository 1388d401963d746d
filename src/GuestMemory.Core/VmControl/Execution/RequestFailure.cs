using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>Why a request failed: messages, the root cause first. The texts are those of upstream, and go over the wire.</summary>
internal sealed class RequestFailure(IReadOnlyList<string> messages) : Exception(messages[^1])
{
    public RequestFailure(string message)
        : this([message])
    {
    }

    /// <summary>An error number as upstream shows it.</summary>
    public static RequestFailure Errno(int error) => new(Text(error));

    /// <summary>Does something; where that fails, adds in what one was busy.</summary>
    public static T Within<T>(string busy, Func<T> action)
    {
        try
        {
            return action();
        }
        catch (Exception exception)
        {
            throw new RequestFailure([.. Chain(exception), busy]);
        }
    }

    /// <summary>The messages of whatever was thrown.</summary>
    public static IReadOnlyList<string> Chain(Exception exception) => exception switch
    {
        RequestFailure failure => failure.Messages,
        SyscallException syscall => [Text(syscall.ErrorCode)],
        _ => [exception.Message],
    };

    private IReadOnlyList<string> Messages { get; } = messages;

    private static string Text(int error) => $"{Marshal.GetPInvokeErrorMessage(error)} (os error {error})";
}
