using System.Diagnostics;
using System.Globalization;
using System.Runtime.ExceptionServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A userfaultfd of a process that does not cooperate: one of its threads is stopped and makes the call, its descriptor is taken over and closed there, and the
/// thread goes on. Other threads run meanwhile. Nothing in the process's memory is written.
/// </summary>
internal static class RemoteUserfaultfd
{
    private static readonly TimeSpan s_stopLimit = TimeSpan.FromSeconds(1);
    private static readonly Lock s_lock = new();

    /// <summary>Creates one.</summary>
    /// <param name="process">The process.</param>
    /// <param name="pidfd">The same, which no other process can be mistaken for.</param>
    /// <param name="standstill">How long its thread stood still, at most.</param>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied, ProcessTraced, ProcessUnsupported; WaitTimeout: no thread of it can be stopped; UffdUnsupported.</exception>
    public static SafeDescriptor Create(int process, SafeDescriptor pidfd, out TimeSpan standstill)
    {
        SafeDescriptor? created = null;
        ExceptionDispatchInfo? failure = null;
        TimeSpan stood = default;
        // All calls of ptrace(2) come from one thread, and what they began ends with it.
        var thread = new Thread(() =>
        {
            lock (s_lock)
            {
                TracedThread.BeginTracing();
                try
                {
                    created = CreateHere(process, pidfd, out stood);
                }
                catch (Exception exception)
                {
                    failure = ExceptionDispatchInfo.Capture(exception);
                }
                finally
                {
                    TracedThread.EndTracing();
                }
            }
        }) { IsBackground = true, Name = "guest-memory-pt" };
        thread.Start();
        thread.Join();
        standstill = stood;
        failure?.Throw();
        return created!;
    }

    private static SafeDescriptor CreateHere(int process, SafeDescriptor pidfd, out TimeSpan standstill)
    {
        standstill = default;
        RequireSameArchitecture(process);
        var instruction = FindSyscallInstruction(process);
        TracedThread.Rehearse(nothing =>
        {
            _ = Pidfd.TryGetDescriptor(pidfd, -1, out _);
            _ = Take(nothing, process, pidfd, instruction);
        });
        foreach (var thread in ThreadsOf(process))
        {
            TracedThread? traced = null;
            var started = Stopwatch.GetTimestamp();
            try
            {
                traced = TracedThread.TrySeize(process, thread);
                // The number is that of the same process still.
                if (Pidfd.HasEnded(pidfd)) throw ProcessFile.NotFound(process);
                started = Stopwatch.GetTimestamp();
                if (traced?.TryStop(s_stopLimit) == true) return Take(traced, process, pidfd, instruction);
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ProcessNotFound && !Pidfd.HasEnded(pidfd))
            {
                // The thread ended, and the process has others.
            }
            finally
            {
                traced?.Dispose();
                standstill = Stopwatch.GetElapsedTime(started);
            }
        }

        if (Pidfd.HasEnded(pidfd)) throw ProcessFile.NotFound(process);
        throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"No thread of process {process} could be stopped: each waits uninterruptibly in the kernel, or its control group is frozen.");
    }

    private static SafeDescriptor Take(TracedThread thread, int process, SafeDescriptor pidfd, ulong instruction)
    {
        // Faults of the kernel need no answer when writes are only noted; so an unprivileged process may create it.
        var number = thread.Call(instruction, (int)Userfaultfd.SyscallNumber, Userfaultfd.O_CLOEXEC | Userfaultfd.O_NONBLOCK | Userfaultfd.UFFD_USER_MODE_ONLY);
        if (number < 0)
        {
            throw (int)-number switch
            {
                Errno.ENOSYS => new SyscallException("userfaultfd", Errno.ENOSYS, $"Creating a userfaultfd in process {process}", GuestMemoryError.UffdUnsupported, "The kernel is built without CONFIG_USERFAULTFD."),
                Errno.EMFILE => new SyscallException("userfaultfd", Errno.EMFILE, $"Creating a userfaultfd in process {process}", remedy: "The process has as many files open as it may ('prlimit --nofile')."),
                var error => new SyscallException("userfaultfd", error, $"Creating a userfaultfd in process {process}"),
            };
        }

        var taken = Pidfd.TryGetDescriptor(pidfd, (int)number, out var failure);
        try
        {
            _ = thread.Call(instruction, SystemCalls.Number("close"), (ulong)number);
        }
        catch
        {
            taken?.Dispose();
            throw;
        }

        return taken ?? throw new SyscallException("pidfd_getfd", failure, $"Taking over the userfaultfd of process {process}",
            failure == Errno.EPERM ? GuestMemoryError.ProcessDenied : GuestMemoryError.SyscallFailed);
    }

    /// <summary>The threads in the order in which they are tried: one that waits in a system call is stopped most easily.</summary>
    private static int[] ThreadsOf(int process)
    {
        const string Order = "StTRD";
        var threads = ProcessFile.Open(process, "task", static path => Directory.GetDirectories(path).Select(static folder => int.Parse(Path.GetFileName(folder.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture)).ToArray());
        return [.. threads.Select(thread => (Thread: thread, Place: Order.IndexOf(StateOf(process, thread), StringComparison.Ordinal)))
            .Where(static item => item.Place >= 0).OrderBy(static item => item.Place).ThenBy(static item => item.Thread).Select(static item => item.Thread)];
    }

    private static char StateOf(int process, int thread)
    {
        try
        {
            return ProcessFile.StatusOf(process, $"task/{thread}/status", "State") is { Length: > 0 } state ? state[0] : 'X';
        }
        catch (GuestMemoryException)
        {
            return 'X';
        }
    }

    /// <exception cref="GuestMemoryException">ProcessUnsupported: a program for another machine, or of 32 bits; a thread of the kernel.</exception>
    private static void RequireSameArchitecture(int process)
    {
        var header = new byte[5];
        var length = ProcessFile.Open(process, "exe", path =>
        {
            try
            {
                using var file = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
                return RandomAccess.Read(file, header, 0);
            }
            catch (FileNotFoundException) when (Directory.Exists($"/proc/{process}"))
            {
                return 0;
            }
        });
        // One that ends has no program any more before it is gone.
        if (length == 0 && !IsKernelThread(process)) throw ProcessFile.NotFound(process);
        if (length == 0) throw new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"Process {process} is a thread of the kernel.");
        // EI_CLASS: ELFCLASS64.
        if (header[4] != 2) throw new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"Process {process} is a 32-bit program; only 64-bit ones can be tracked.");
    }

    /// <summary>PF_KTHREAD of its flags (linux/sched.h).</summary>
    private static bool IsKernelThread(int process)
    {
        const ulong PF_KTHREAD = 0x0020_0000;
        return ProcessFile.Read(process, "stat", static lines => (ulong.Parse(lines.First().Split(") ")[^1].Split(' ')[6], CultureInfo.InvariantCulture) & PF_KTHREAD) != 0);
    }

    /// <summary>An instruction in the process's code that makes a system call: the kernel's own code there has some, and so has each program.</summary>
    private static ulong FindSyscallInstruction(int process)
    {
        var buffer = new byte[64 * 1024];
        foreach (var mapping in ProcessMapping.GetAll(process).Where(static mapping => mapping.Protection.StartsWith("r-x", StringComparison.Ordinal)).OrderBy(static mapping => mapping.Path != "[vdso]"))
        {
            // Pieces overlap: an instruction may lie across two of them.
            for (ulong done = 0; done < mapping.Size; done += (ulong)buffer.Length - sizeof(uint))
            {
                var count = ProcessVm.TryRead(process, buffer.AsSpan(0, (int)Math.Min((ulong)buffer.Length, mapping.Size - done)), mapping.Address + done);
                if (count is -Errno.EPERM or -Errno.EACCES) throw ProcessFile.Denied(process, "its memory may not be read.");
                if (count < 0) break;
                if (Registers.FindSyscallInstruction(buffer.AsSpan(0, (int)count)) is var at and >= 0) return mapping.Address + done + (ulong)at;
            }
        }

        throw new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"Process {process} has no code that makes a system call.");
    }
}
