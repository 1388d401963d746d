using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;

namespace GuestMemory.Core;

/// <summary>
/// Runs an access that may wait for a page on a thread of its own, so that the caller can leave it. A thread that waits for a
/// userfaultfd page inside the kernel cannot be interrupted: it ends when the page comes, or when the region goes.
/// </summary>
internal static class BlockingAccess
{
    private static readonly TimeSpan s_look = TimeSpan.FromMilliseconds(250);

    /// <summary>
    /// Waits for the access or the token. An abandoned access goes on: what it writes to must stay its own.
    /// </summary>
    /// <param name="access">The access; it is given a place to tell how far it has come.</param>
    /// <param name="giveUp">Asked when the access has not moved for a while: why it never will, or null.</param>
    /// <param name="cancellation">Leaves the access.</param>
    /// <exception cref="OperationCanceledException">The caller left; the access may still be running.</exception>
    public static T Run<T>(Func<StrongBox<long>, T> access, Func<Exception?> giveUp, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        var progress = new StrongBox<long>(-1);
        var done = new TaskCompletionSource<T>();
        var thread = new Thread(() =>
        {
            try
            {
                done.SetResult(access(progress));
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
            var last = long.MinValue;
            while (!done.Task.Wait((int)s_look.TotalMilliseconds, cancellation))
            {
                var now = Volatile.Read(ref progress.Value);
                if (now == last && giveUp() is { } reason) throw reason;
                last = now;
            }
        }
        catch (AggregateException exception)
        {
            ExceptionDispatchInfo.Throw(exception.InnerException!);
        }

        return done.Task.Result;
    }
}
