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
        var done = Start(access, progress);
        try
        {
            var last = long.MinValue;
            while (!done.Wait((int)s_look.TotalMilliseconds, cancellation)) ThrowIfStuck(progress, ref last, giveUp);
        }
        catch (AggregateException exception)
        {
            ExceptionDispatchInfo.Throw(exception.InnerException!);
        }

        return done.Result;
    }

    /// <summary>The same without a thread that waits for the one of the access; see <see cref="Run"/>.</summary>
    /// <exception cref="OperationCanceledException">The caller left; the access may still be running.</exception>
    public static async Task<T> RunAsync<T>(Func<StrongBox<long>, T> access, Func<Exception?> giveUp, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        var progress = new StrongBox<long>(-1);
        var done = Start(access, progress);
        using var over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        try
        {
            var last = long.MinValue;
            while (await Task.WhenAny(done, Task.Delay(s_look, over.Token)).ConfigureAwait(false) != done)
            {
                cancellation.ThrowIfCancellationRequested();
                ThrowIfStuck(progress, ref last, giveUp);
            }
        }
        finally
        {
            // The delay that lost has a timer.
            await over.CancelAsync().ConfigureAwait(false);
        }

        return await done.ConfigureAwait(false);
    }

    private static Task<T> Start<T>(Func<StrongBox<long>, T> access, StrongBox<long> progress)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
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
        return done.Task;
    }

    private static void ThrowIfStuck(StrongBox<long> progress, ref long last, Func<Exception?> giveUp)
    {
        var now = Volatile.Read(ref progress.Value);
        if (now == last && giveUp() is { } reason) throw reason;
        last = now;
    }
}
