using System.Diagnostics;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A thread of another process, stopped to make system calls in its place. Disposal puts it back as it was and lets it go on: a call that
/// was interrupted goes on or begins anew, signals that came meanwhile are delivered, and a process that was stopped by a signal stays so. One thread makes
/// all calls; where it ends early, the kernel lets the other go on.
/// </summary>
internal sealed class TracedThread : IDisposable
{
    // Of a call that was put in; a thread that runs answers in microseconds.
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(10);

    private static readonly Lock s_lock = new();

    private static bool s_isRehearsed;
    private static int s_tracing;
    private static bool s_hasChanged;

    private readonly int _process, _thread;
    private readonly ulong[] _registers = new ulong[Registers.Count];
    private readonly ulong[] _saved = new ulong[Registers.Count];
    private ulong _mask;
    private bool _isInStop, _isSaved, _isUsed, _hasEnded;

    private TracedThread(int process, int thread) => (_process, _thread) = (process, thread);

    /// <summary>Traces a thread, which goes on running; null where it has ended.</summary>
    /// <exception cref="GuestMemoryException">ProcessDenied, ProcessTraced, ProcessUnsupported.</exception>
    /// <param name="process">The process.</param>
    /// <param name="thread">Its thread.</param>
    /// <param name="runsCalls">Whether it is to make system calls, which a filter of its own might forbid.</param>
    public static TracedThread? TrySeize(int process, int thread, bool runsCalls = true)
    {
        var status = $"task/{thread}/status";
        var isFiltered = runsCalls && ProcessFile.StatusOf(process, status, "Seccomp") is not ("0" or "");
        var error = Ptrace.TrySeize(thread, Ptrace.PTRACE_O_TRACESYSGOOD | (isFiltered ? Ptrace.PTRACE_O_SUSPEND_SECCOMP : 0));
        if (error == 0) return new TracedThread(process, thread);
        if (error == Errno.ESRCH) return null;
        if (ProcessFile.StatusOf(process, status, "TracerPid") is { } tracer and not ("0" or ""))
            throw new GuestMemoryException(GuestMemoryError.ProcessTraced, $"Process {process} is traced by process {tracer} (a debugger, strace), and only one can trace it.");
        // Without the option it is traced now; the kernel ends that with this thread.
        if (isFiltered && Ptrace.TrySeize(thread, Ptrace.PTRACE_O_TRACESYSGOOD) == 0)
        {
            throw error == Errno.EINVAL
                ? new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"A seccomp filter limits the system calls of process {process}, and this kernel cannot suspend it (CONFIG_CHECKPOINT_RESTORE).")
                : new GuestMemoryException(GuestMemoryError.ProcessDenied, $"A seccomp filter limits the system calls of process {process}. To suspend it for a moment needs root (CAP_SYS_ADMIN) and a caller without such a filter.");
        }

        throw error is Errno.EPERM or Errno.EACCES ? ProcessFile.Denied(process, "ptrace(2) is refused.") : new SyscallException("ptrace(PTRACE_SEIZE)", error, $"Tracing process {process}");
    }

    /// <summary>A thread of this process begins to trace threads of another one; <see cref="EndTracing"/> follows.</summary>
    public static void BeginTracing()
    {
        lock (s_lock)
        {
            if (s_tracing++ == 0) s_hasChanged = Signals.TellOfStops(false);
        }
    }

    public static void EndTracing()
    {
        lock (s_lock)
        {
            if (--s_tracing == 0 && s_hasChanged) _ = Signals.TellOfStops(true);
        }
    }

    /// <summary>Stops the thread, which makes no calls for others; false where it does not stop in time, in an uninterruptible call or a frozen control group.</summary>
    /// <exception cref="GuestMemoryException">ProcessNotFound: it has ended.</exception>
    public bool TryHalt(TimeSpan limit)
    {
        Check(Ptrace.TryInterrupt(_thread));
        return TryAwaitEvent(limit);
    }

    /// <summary>The same for a thread that is to make system calls.</summary>
    /// <exception cref="GuestMemoryException">ProcessNotFound: it has ended; ProcessUnsupported: no system call can be made in its place.</exception>
    public bool TryStop(TimeSpan limit)
    {
        if (!TryHalt(limit)) return false;
        Check(Ptrace.TryGetRegisters(_thread, _saved, out var length));
        if (length != Registers.Count * sizeof(ulong)) throw new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"Process {_process} runs code of another architecture (32-bit) than this one.");
        if (Ptrace.DispatchesSystemCalls(_thread)) throw new GuestMemoryException(GuestMemoryError.ProcessUnsupported, $"Process {_process} answers its system calls itself (syscall user dispatch, as Wine does).");
        Check(Ptrace.TryGetSignalMask(_thread, out _mask));
        LeaveSequence();
        Registers.RestartInterrupted(_saved);
        _isSaved = true;
        return true;
    }

    /// <summary>Makes a system call in the thread's place.</summary>
    /// <param name="instruction">The address of an instruction that makes one.</param>
    /// <param name="number">The call.</param>
    /// <param name="argument">Its argument.</param>
    /// <returns>What it returned: a negated error number where it failed.</returns>
    public long Call(ulong instruction, int number, ulong argument)
    {
        if (!_isUsed)
        {
            // Signals wait until the thread is as it was. SIGSTOP and SIGKILL do not.
            Check(Ptrace.TrySetSignalMask(_thread, ulong.MaxValue));
            _isUsed = true;
        }

        _saved.CopyTo(_registers, 0);
        Registers.SetCall(_registers, instruction, number, argument);
        Check(Ptrace.TrySetRegisters(_thread, _registers));
        GoToSyscallStop();
        GoToSyscallStop();
        Check(Ptrace.TryGetRegisters(_thread, _registers, out _));
        return Registers.ResultOf(_registers);
    }

    /// <summary>Has everything compiled that a stopped thread would wait for; changes nothing.</summary>
    /// <param name="use">What is done with a thread that is stopped.</param>
    public static void Rehearse(Action<TracedThread> use)
    {
        if (s_isRehearsed) return;
        s_isRehearsed = true;
        // No thread has that number: each call fails.
        const int None = int.MaxValue;
        var nothing = new TracedThread(None, None);
        _ = Ptrace.TryGetRegisters(None, nothing._saved, out _);
        _ = Ptrace.TrySetRegisters(None, nothing._saved);
        _ = Ptrace.TryGetSignalMask(None, out _);
        _ = Ptrace.TrySetSignalMask(None, 0);
        _ = Ptrace.DispatchesSystemCalls(None);
        _ = Ptrace.TryResume(Ptrace.PTRACE_DETACH, None, 0);
        _ = SignalOf(0);
        _ = Thread.Yield();
        Thread.SpinWait(1);
        nothing.LeaveSequence();
        _ = nothing.TryReadWords(0, nothing._saved.AsSpan(0, 1));
        Registers.RestartInterrupted(nothing._saved);
        Registers.SetCall(nothing._registers, 0, 0, 0);
        _ = Registers.ResultOf(nothing._registers);
        foreach (var step in new Action[] { () => use(nothing), () => nothing.TryStop(TimeSpan.Zero), nothing.GoToSyscallStop, () => nothing.TryAwaitEvent(TimeSpan.Zero), nothing.Restore })
        {
            try
            {
                step();
            }
            catch (GuestMemoryException)
            {
                // As meant.
            }
        }

        nothing.Dispose();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_hasEnded || !(_isInStop || _isUsed)) return;
        try
        {
            Restore();
        }
        catch (GuestMemoryException)
        {
            // It ended. Nothing is left to put back.
        }
    }

    private void Restore()
    {
        if (_isUsed)
        {
            // Only in a stop like the first one does the kernel look whether the registers are those of an interrupted call.
            Check(Ptrace.TryInterrupt(_thread));
            if (_isInStop) Resume(Ptrace.PTRACE_CONT, 0);
            if (!TryAwaitEvent(s_limit)) return;
            Check(Ptrace.TrySetSignalMask(_thread, _mask));
        }

        if (_isSaved) Check(Ptrace.TrySetRegisters(_thread, _saved));
        Resume(Ptrace.PTRACE_DETACH, 0);
    }

    /// <summary>
    /// A sequence that must not be interrupted (<c>rseq(2)</c>) begins anew, as the kernel would have it: it would not see that this thread
    /// was elsewhere meanwhile.
    /// </summary>
    private void LeaveSequence()
    {
        var registered = Ptrace.RestartableSequencesOf(_thread);
        // struct rseq: cpu_id_start and cpu_id, rseq_cs.
        Span<ulong> current = [0];
        // struct rseq_cs: version and flags, start_ip, post_commit_offset, abort_ip.
        Span<ulong> sequence = [0, 0, 0, 0];
        if (registered == 0 || !TryReadWords(registered + sizeof(ulong), current) || current[0] == 0 || !TryReadWords(current[0], sequence)) return;
        ref var next = ref Registers.NextInstruction(_saved);
        if (unchecked(next - sequence[1]) < sequence[2]) next = sequence[3];
    }

    private bool TryReadWords(ulong address, Span<ulong> words)
    {
        var bytes = MemoryMarshal.AsBytes(words);
        return ProcessVm.TryRead(_process, bytes, address) == bytes.Length;
    }

    private void GoToSyscallStop()
    {
        var signal = 0;
        int stop;
        do
        {
            Resume(Ptrace.PTRACE_SYSCALL, signal);
            if (!TryAwaitStop(s_limit, out stop)) throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"A system call in process {_process} did not end within {s_limit.TotalSeconds:0} s.");
            signal = SignalOf(stop);
        }
        while (stop != Ptrace.SyscallStop);
    }

    private bool TryAwaitEvent(TimeSpan limit)
    {
        while (TryAwaitStop(limit, out var stop))
        {
            if (stop >> 8 == Ptrace.PTRACE_EVENT_STOP) return true;
            Resume(Ptrace.PTRACE_CONT, SignalOf(stop));
        }

        return false;
    }

    /// <summary>The signal that a thread stopped for, to be delivered; 0 where it stopped for the tracer.</summary>
    private static int SignalOf(int stop) => stop is > 0 and <= 0xff and not Ptrace.SyscallStop ? stop : 0;

    private bool TryAwaitStop(TimeSpan limit, out int stop)
    {
        var started = Stopwatch.GetTimestamp();
        for (var round = 0; ; round++)
        {
            var found = Ptrace.TryGetStop(_thread, out stop);
            if (found > 0) return _isInStop = true;
            if (found < 0)
            {
                _hasEnded = true;
                throw ProcessFile.NotFound(_process);
            }

            if (Stopwatch.GetElapsedTime(started) >= limit) return false;
            // A thread that runs stops within microseconds. On a busy machine one that yields stands back for milliseconds, and so would the other.
            if (round < 20) Thread.SpinWait(100);
            else if (round < 1000) Thread.Yield();
            else Thread.Sleep(1);
        }
    }

    private void Resume(int request, int signal)
    {
        _isInStop = false;
        Check(Ptrace.TryResume(request, _thread, signal));
    }

    private void Check(int error)
    {
        if (error == 0) return;
        if (error != Errno.ESRCH) throw new SyscallException("ptrace", error, $"Having process {_process} make a system call");
        _hasEnded = true;
        throw ProcessFile.NotFound(_process);
    }
}
