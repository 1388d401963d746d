using System.Diagnostics;
using System.Globalization;
using System.Runtime.ExceptionServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A process of which no thread runs, by ptrace(2). Disposal lets it go on as it was: a system call that was interrupted begins anew, signals that came meanwhile are
/// delivered. Where this process ends first, the kernel does that.
/// </summary>
internal sealed class StoppedProcess : IDisposable
{
    // How often it is looked whether the process has been killed meanwhile.
    private const int LookMilliseconds = 250;

    private readonly int _process;
    private readonly Thread _tracer;
    private readonly ManualResetEventSlim _isDone = new();
    private readonly ManualResetEventSlim _isReleased = new();
    private ExceptionDispatchInfo? _failure;

    private StoppedProcess(int process, TimeSpan limit)
    {
        _process = process;
        // All calls of ptrace(2) come from one thread, and what they began ends with it.
        _tracer = new Thread(() => Trace(limit)) { IsBackground = true, Name = "guest-memory-pt" };
    }

    /// <summary>Stops every thread; when it returns none runs, and none will before disposal.</summary>
    /// <param name="process">The process, not this one.</param>
    /// <param name="limit">How long a thread may take to stop, which does not while it waits uninterruptibly in the kernel.</param>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied, ProcessTraced; WaitTimeout: a thread did not stop; ValueNotSupported: it is this process. Then none is stopped.</exception>
    public static StoppedProcess Stop(int process, TimeSpan limit)
    {
        if (process == Environment.ProcessId) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "The VM's memory is this process's own, which cannot stop itself.");
        var stopped = new StoppedProcess(process, limit);
        stopped._tracer.Start();
        stopped._isDone.Wait();
        if (stopped._failure is not { } failure) return stopped;
        stopped.Dispose();
        failure.Throw();
        throw failure.SourceException;
    }

    public void Dispose()
    {
        _isReleased.Set();
        _tracer.Join();
        _isDone.Dispose();
        _isReleased.Dispose();
    }

    private void Trace(TimeSpan limit)
    {
        var traced = new Dictionary<int, TracedThread>();
        TracedThread.BeginTracing();
        try
        {
            StopAll(traced, limit);
            _isDone.Set();
            // The end of a process that is traced is nobody's to see before the tracing ends.
            while (!_isReleased.Wait(LookMilliseconds) && !HaveEnded(traced.Keys))
            {
            }
        }
#pragma warning disable CA1031 // It is thrown on the thread that waits.
        catch (Exception exception)
        {
            _failure = ExceptionDispatchInfo.Capture(exception);
        }
#pragma warning restore CA1031
        finally
        {
            foreach (var thread in traced.Values) thread.Dispose();
            TracedThread.EndTracing();
            _isDone.Set();
        }
    }

    private void StopAll(Dictionary<int, TracedThread> traced, TimeSpan limit)
    {
        var started = Stopwatch.GetTimestamp();
        var ended = new HashSet<int>();
        // A thread that runs may start another one, also one that has ended since: until there is none that is new.
        for (var hasNew = true; hasNew;)
        {
            if (Stopwatch.GetElapsedTime(started) > limit)
                throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"Process {_process} did not stop within {limit.TotalSeconds:0.#} s: it goes on starting threads.");
            hasNew = false;
            foreach (var thread in ThreadsOf())
            {
                if (traced.ContainsKey(thread)) continue;
                if (HasEnded(thread))
                {
                    // A first thread that ended before the others stays in the list, and cannot be traced.
                    hasNew |= ended.Add(thread);
                    continue;
                }

                hasNew = true;
                try
                {
                    if (TracedThread.TrySeize(_process, thread, runsCalls: false) is not { } seized) continue;
                    traced.Add(thread, seized);
                    if (!seized.TryHalt(limit - Stopwatch.GetElapsedTime(started)))
                        throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"Thread {thread} of process {_process} did not stop within {limit.TotalSeconds:0.#} s: it waits uninterruptibly in the kernel, or its control group is frozen.");
                }
                catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ProcessNotFound)
                {
                    // That thread ended.
                }
            }
        }

        if (traced.Count == 0) throw ProcessFile.NotFound(_process);
    }

    /// <summary>The state of a thread, as the kernel writes it: R, S, D, T, t (traced), Z, X; null where it has ended and is listed no more.</summary>
    /// <exception cref="GuestMemoryException">ProcessDenied, SyscallFailed: that is not known.</exception>
    internal static char? StateOf(int process, int thread)
    {
        try
        {
            return ProcessFile.Open(process, $"task/{thread}/stat", File.ReadAllText).Split(") ")[^1][0];
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ProcessNotFound)
        {
            return null;
        }
    }

    private int[] ThreadsOf() => [.. ProcessFile.Open(_process, "task", Directory.GetDirectories)
        .Select(static folder => int.Parse(Path.GetFileName(folder.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture))];

    private bool HasEnded(int thread) => StateOf(_process, thread) is null or 'Z' or 'X';

    private bool HaveEnded(IEnumerable<int> threads)
    {
        try
        {
            return threads.All(HasEnded);
        }
        catch (GuestMemoryException)
        {
            // It is not known: the process stays stopped.
            return false;
        }
    }
}
