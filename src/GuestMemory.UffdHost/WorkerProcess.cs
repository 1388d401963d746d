using System.Diagnostics;
using System.Runtime.ExceptionServices;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.UffdHost;

/// <summary>A worker: the process, the channel to it, and the descriptor that tells of its end.</summary>
internal sealed class WorkerProcess : IDisposable
{
    /// <summary>The worker's end of the channel.</summary>
    public const int ChannelNumber = 3;

    private WorkerProcess(int process, SafeDescriptor end, Channel channel)
    {
        ProcessId = process;
        End = end;
        Channel = channel;
    }

    public int ProcessId { get; }

    /// <summary>Readable when the process has ended.</summary>
    public SafeDescriptor End { get; }

    public Channel Channel { get; }

    /// <summary>When it said that it can take VMs; 0 before.</summary>
    public long ReadyAt { get; set; }

    /// <summary>When it was given the VMs; 0 for a spare one.</summary>
    public long EmployedAt { get; set; }

    /// <summary>How often in a row it was looked after without a message from it since.</summary>
    public int MissedBeats { get; set; }

    /// <summary>The images that it was given.</summary>
    public HashSet<ServedImage> Given { get; } = [];

    /// <summary>Those that it has opened.</summary>
    public HashSet<ServedImage> Opened { get; } = [];

    /// <summary>VMs that were sent and not yet taken.</summary>
    public int Untaken { get; set; }

    public bool IsReady => ReadyAt != 0;

    /// <summary>Starts one.</summary>
    /// <param name="privileges">What it may do.</param>
    /// <exception cref="GuestMemoryException">It could not be started.</exception>
    public static WorkerProcess Start(Privileges privileges)
    {
        List<string> arguments = Program.CommandLine();
        // A program of its own starts itself again, also where another version lies at its path by now.
        var program = arguments.Count == 1 ? "/proc/self/exe" : arguments[0];
        var library = arguments.Count == 1 ? null : arguments[1];
        arguments.Add(Program.WorkerArgument);
        var environment = Program.Variables();
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true);
        try
        {
            using var mine = far;
            using var nothing = File.OpenHandle("/dev/null");
            var (input, channel, process) = ((int)nothing.DangerousGetHandle(), far.Number, 0);
            // Rights are a thread's, and what it starts has its.
            OnOwnThread(() =>
            {
                privileges.DropForWorker();
                if (library is not null && !FileStatus.CanRead(library))
                    throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, $"A worker, which has no capabilities, may not read {library}: give its directories and files the right to be read by user {Users.Current} ('chmod').");
                process = Spawn.Start(program, arguments, environment, [input, 2, 2, channel]);
            });
            var end = Pidfd.TryOpen(process, out var error) ?? throw new SyscallException("pidfd_open", error, "Watching the worker");
            return new WorkerProcess(process, end, new Channel(near));
        }
        catch
        {
            near.Dispose();
            throw;
        }
    }

    /// <summary>Whether it has been ready, and had the VMs where it is no spare one, for so long.</summary>
    public bool IsOlderThan(TimeSpan age) => IsReady && Stopwatch.GetElapsedTime(Math.Max(ReadyAt, EmployedAt)) > age;

    public void Kill() => _ = Pidfd.TrySignal(End, Pidfd.SIGKILL);

    private static void OnOwnThread(Action action)
    {
        ExceptionDispatchInfo? failure = null;
        var thread = new Thread(Run) { IsBackground = true, Name = "uffd-start" };
        try
        {
            thread.Start();
        }
        catch (Exception exception) when (exception is OutOfMemoryException or ThreadStartException)
        {
            throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, "The host has no thread to start a worker with (TasksMax=, 'ulimit -u', kernel.threads-max).", exception);
        }

        thread.Join();
        failure?.Throw();

        void Run()
        {
            try
            {
                action();
            }
#pragma warning disable CA1031 // It is thrown where it was asked for.
            catch (Exception exception)
            {
                failure = ExceptionDispatchInfo.Capture(exception);
            }
#pragma warning restore CA1031
        }
    }

    public void Dispose()
    {
        Channel.Dispose();
        End.Dispose();
    }
}
