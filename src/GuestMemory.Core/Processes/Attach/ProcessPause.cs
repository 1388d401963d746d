using System.Diagnostics;
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
    private static readonly Lock s_lock = new();
    private static readonly Dictionary<int, ProcessPause> s_pauses = [];

    private readonly int _process;
    private readonly SafeDescriptor _pidfd;
    private readonly StoppedProcess? _stopped;
    private readonly bool _isSignalled;
    private int _holders = 1;

    private ProcessPause(int process)
    {
        _process = process;
        // Its own: whoever holds the process besides may leave first.
        _pidfd = Pidfd.TryOpen(process, out var error) ?? throw (error == Errno.ESRCH ? ProcessFile.NotFound(process) : new SyscallException("pidfd_open", error, $"Opening process {process}"));
        try
        {
            _stopped = StoppedProcess.Stop(process, s_limit);
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.ProcessTraced or GuestMemoryError.ProcessDenied)
        {
            if (IsStopped()) return;
            if (Pidfd.TrySignal(_pidfd, Pidfd.SIGSTOP) != 0) throw;
            _isSignalled = true;
            if (!WaitUntilStopped())
            {
                _ = Pidfd.TrySignal(_pidfd, SIGCONT);
                throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"Process {process} did not stop within {s_limit.TotalSeconds:0} s of SIGSTOP: a debugger keeps the signal from it, or it waits uninterruptibly in the kernel.", exception);
            }

            Note = $"Process {process} is stopped by SIGSTOP, since ptrace(2) is refused: {exception.Message} Where this process dies meanwhile it stays stopped until it gets SIGCONT ('kill -CONT {process}').";
        }
    }

    /// <summary>What is to be said of the way it is stopped, or null.</summary>
    public string? Note { get; }

    /// <summary>Stops a process, or shares the stop.</summary>
    /// <param name="process">The process.</param>
    /// <exception cref="GuestMemoryException">As <see cref="StoppedProcess.Stop"/>.</exception>
    public static ProcessPause Begin(int process)
    {
        lock (s_lock)
        {
            if (s_pauses.TryGetValue(process, out var shared))
            {
                shared._holders++;
                return shared;
            }

            var pause = new ProcessPause(process);
            s_pauses.Add(process, pause);
            return pause;
        }
    }

    public void Dispose()
    {
        lock (s_lock)
        {
            if (--_holders > 0) return;
            s_pauses.Remove(_process);
            _stopped?.Dispose();
            if (_isSignalled) _ = Pidfd.TrySignal(_pidfd, SIGCONT);
            _pidfd.Dispose();
        }
    }

    private bool WaitUntilStopped()
    {
        for (var started = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(started) < s_limit; Thread.Sleep(1))
        {
            if (IsStopped()) return true;
        }

        return false;
    }

    private bool IsStopped() => ProcessFile.Open(_process, "task", static path => Directory.GetDirectories(path).All(static folder =>
    {
        try
        {
            return File.ReadAllText(Path.Combine(folder, "stat")).Split(") ")[^1][0] is 'T' or 't' or 'Z' or 'X';
        }
        catch (IOException)
        {
            return true;   // it has ended
        }
    }));
}
