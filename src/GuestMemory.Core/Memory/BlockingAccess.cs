using System.Runtime.ExceptionServices;

namespace GuestMemory.Core;

/// <summary>
/// Runs an access that may wait for a page on a thread of its own, so that the caller can leave it. A thread that waits for a
/// userfaultfd page inside the kernel cannot be interrupted: it ends when the page comes, or when the region goes.
/// </summary>
internal static class BlockingAccess
{
    /// <summary>Waits for the access or the token. An abandoned access goes on: what it writes to must stay its own.</summary>
    /// <exception cref="OperationCanceledException">The caller left; the access may still be running.</exception>
    public static T Run<T>(Func<T> access, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        var done = new TaskCompletionSource<T>();
        var thread = new Thread(() =>
        {
            try
            {
                done.SetResult(access());
            }
#pragma warning disable CA1031 // Every failure belongs to the waiting caller.
            catch (Exception exception)
            {
                done.SetException(exception);
            }
#pragma warning restore CA1031
        })
        {
            IsBackground = true,
            Name = "guest-memory-access",
        };
        thread.Start();
        try
        {
            done.Task.Wait(cancellation);
        }
        catch (AggregateException exception)
        {
            ExceptionDispatchInfo.Throw(exception.InnerException!);
        }

        return done.Task.Result;
    }
}
