using System.Diagnostics;
using System.Globalization;
using System.Runtime.ExceptionServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A process that stands still while somebody holds it: by ptrace(2), so that the kernel lets it go on where this process dies; by SIGSTOP only where
/// ptrace is refused. One for all that hold the same process, since only one can trace it.
/// </summary>
internal sealed class ProcessPause : IDisposable
{
    public const int SIGCONT = 18;

    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(5);
    // Of the pauses and their holders. Nobody waits for a process to stop with it: that takes seconds.
    private static readonly Lock s_lock = new();
    private static readonly Dictionary<int, ProcessPause> s_pauses = [];
    private static bool s_isContinuedAtExit;

    private readonly int _process;
    private readonly SafeDescriptor _pidfd;
    private readonly Lock _stopLock = new();
    private StoppedProcess? _stopped;
    private volatile bool _isSignalled;
    private bool _isStopped;
    private int _holders = 1;

    private ProcessPause(int process)
    {
        _process = process;
        // Its own: another holder of the process may leave first.
        _pidfd = Pidfd.TryOpen(process, out var error) ?? throw (error == Errno.ESRCH ? ProcessFile.NotFound(process) : new SyscallException("pidfd_open", error, $"Opening process {process}"));
    }

    /// <summary>What is to be said of the way it is stopped, or null.</summary>
    public string? Note { get; private set; }

    /// <summary>Stops a process, or shares the stop.</summary>
    /// <param name="process">The process.</param>
    /// <exception cref="GuestMemoryException">As <see cref="StoppedProcess.Stop"/>.</exception>
    public static ProcessPause Begin(int process)
    {
        ProcessPause? pause;
        lock (s_lock)
        {
            // One of a process that has ended is not of the one that has its number by now.
            if (s_pauses.TryGetValue(process, out pause) && !Pidfd.HasEnded(pause._pidfd))
            {
                pause._holders++;
            }
            else
            {
                pause = new ProcessPause(process);
                s_pauses[process] = pause;
            }
        }

        try
        {
            pause.Stop();
            return pause;
        }
        catch
        {
            pause.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        // With the lock until it goes on, or who begins meanwhile would take the end of this stop for a stop of another.
        lock (s_lock)
        {
            if (--_holders > 0) return;
            if (s_pauses.TryGetValue(_process, out var current) && ReferenceEquals(current, this)) s_pauses.Remove(_process);
            _stopped?.Dispose();
            Continue();
            _pidfd.Dispose();
        }
    }

    /// <summary>The first holder stops it, the others wait for that; where it fails each tries.</summary>
    private void Stop()
    {
        lock (_stopLock)
        {
            if (_isStopped) return;
            try
            {
                _stopped = StoppedProcess.Stop(_process, s_limit);
            }
            catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.ProcessTraced or GuestMemoryError.ProcessDenied)
            {
                if (!IsStopped()) StopBySignal(exception);
            }

            _isStopped = true;
        }
    }

    private void StopBySignal(GuestMemoryException refusal)
    {
        ContinueAtExit();
        _isSignalled = true;
        if (Pidfd.TrySignal(_pidfd, Pidfd.SIGSTOP) != 0)
        {
            _isSignalled = false;
            ExceptionDispatchInfo.Throw(refusal);
        }

        try
        {
            if (!WaitUntilStopped())
                throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"Process {_process} did not stop within {s_limit.TotalSeconds:0} s of SIGSTOP: a debugger keeps the signal from it, or it waits uninterruptibly in the kernel.", refusal);
        }
        catch
        {
            Continue();
            throw;
        }

        Note = $"Process {_process} is stopped by SIGSTOP, since ptrace(2) is refused: {refusal.Message} Where this process is killed meanwhile it stays stopped until it gets SIGCONT ('kill -CONT {_process}').";
    }

    private void Continue()
    {
        if (!_isSignalled) return;
        _isSignalled = false;
        _ = Pidfd.TrySignal(_pidfd, SIGCONT);
    }

    /// <summary>What the kernel does for those that are traced.</summary>
    private static void ContinueAtExit()
    {
        lock (s_lock)
        {
            if (s_isContinuedAtExit) return;
            s_isContinuedAtExit = true;
        }

        AppDomain.CurrentDomain.ProcessExit += static (_, _) =>
        {
            // A thread that has the lock that long lets its own process go on.
            if (!s_lock.TryEnter(TimeSpan.FromSeconds(1))) return;
            try
            {
                foreach (var pause in s_pauses.Values) pause.Continue();
            }
            finally
            {
                s_lock.Exit();
            }
        };
    }

    private bool WaitUntilStopped()
    {
        for (var started = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(started) < s_limit; Thread.Sleep(1))
        {
            if (IsStopped()) return true;
        }

        return false;
    }

    private bool IsStopped() => ProcessFile.Open(_process, "task", Directory.GetDirectories)
        .All(folder => StoppedProcess.StateOf(_process, int.Parse(Path.GetFileName(folder.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture)) is null or 'T' or 't' or 'Z' or 'X');
}
