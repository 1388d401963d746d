using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// Threads of other processes, stopped and examined (<c>ptrace(2)</c>). The kernel ties a traced thread to the thread that traces it: all
/// calls about it come from that one, and where that one ends the kernel detaches what it still traces. The Try methods return 0 or the error number.
/// </summary>
internal static unsafe partial class Ptrace
{
    public const int PTRACE_CONT = 7;
    public const int PTRACE_DETACH = 17;
    public const int PTRACE_SYSCALL = 24;
    public const int PTRACE_GETSIGINFO = 0x4202;
    public const int PTRACE_GETREGSET = 0x4204;
    public const int PTRACE_SETREGSET = 0x4205;
    public const int PTRACE_SEIZE = 0x4206;
    public const int PTRACE_INTERRUPT = 0x4207;
    public const int PTRACE_GETSIGMASK = 0x420a;
    public const int PTRACE_SETSIGMASK = 0x420b;
    public const int PTRACE_GET_RSEQ_CONFIGURATION = 0x420f;
    public const int PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211;

    public const uint PTRACE_O_TRACESYSGOOD = 1;
    public const uint PTRACE_O_SUSPEND_SECCOMP = 1 << 21;
    public const int PTRACE_EVENT_STOP = 128;

    public const int NT_PRSTATUS = 1;
    public const int SIGTRAP = 5;

    /// <summary>The stop at the begin or the end of a system call, with PTRACE_O_TRACESYSGOOD.</summary>
    public const int SyscallStop = SIGTRAP | 0x80;

    public const int P_PID = 1;
    public const int WNOWAIT = 0x01000000;
    public const int CLD_DUMPED = 3;

    /// <summary>Waits for threads that are no children, too.</summary>
    public const int __WALL = 0x40000000;

    /// <summary>Traces a thread; it goes on running.</summary>
    public static int TrySeize(int thread, uint options) => Result(ptrace(PTRACE_SEIZE, thread, 0, (nint)options));

    /// <summary>Has a traced thread stop.</summary>
    public static int TryInterrupt(int thread) => Result(ptrace(PTRACE_INTERRUPT, thread, 0, 0));

    /// <summary>Has a stopped thread go on, by PTRACE_CONT, PTRACE_SYSCALL or PTRACE_DETACH.</summary>
    /// <param name="request">How it goes on.</param>
    /// <param name="thread">The thread.</param>
    /// <param name="signal">The signal that it stopped for, to be delivered; 0 for none.</param>
    public static int TryResume(int request, int thread, int signal) => Result(ptrace(request, thread, 0, signal));

    /// <summary>Reads the general registers of a stopped thread; <paramref name="length"/> is how many bytes the kernel gave.</summary>
    public static int TryGetRegisters(int thread, Span<ulong> registers, out int length) => TransferRegisters(PTRACE_GETREGSET, thread, registers, out length);

    /// <summary>Writes the general registers of a stopped thread.</summary>
    public static int TrySetRegisters(int thread, Span<ulong> registers) => TransferRegisters(PTRACE_SETREGSET, thread, registers, out _);

    /// <summary>Reads the signals that a stopped thread blocks.</summary>
    public static int TryGetSignalMask(int thread, out ulong mask)
    {
        ulong value = 0;
        var error = Result(ptrace(PTRACE_GETSIGMASK, thread, sizeof(ulong), (nint)(&value)));
        mask = value;
        return error;
    }

    /// <summary>Sets the signals that a stopped thread blocks.</summary>
    public static int TrySetSignalMask(int thread, ulong mask) => Result(ptrace(PTRACE_SETSIGMASK, thread, sizeof(ulong), (nint)(&mask)));

    /// <summary>Where a stopped thread registered its restartable sequences (<c>rseq(2)</c>); 0 where it registered none.</summary>
    public static ulong RestartableSequencesOf(int thread)
    {
        // struct ptrace_rseq_configuration: the address, then four numbers of 32 bits.
        var configuration = stackalloc ulong[3];
        return ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread, 3 * sizeof(ulong), (nint)configuration) < 0 ? 0 : configuration[0];
    }

    /// <summary>Whether a stopped thread's own code answers its system calls (<c>PR_SET_SYSCALL_USER_DISPATCH</c>).</summary>
    public static bool DispatchesSystemCalls(int thread)
    {
        // struct ptrace_sud_config: mode, selector, offset, len.
        var configuration = stackalloc ulong[4];
        return ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, thread, 4 * sizeof(ulong), (nint)configuration) == 0 && configuration[0] != 0;
    }

    /// <summary>
    /// Whether a traced thread is in a stop: 1, 0 where it runs, or the negated error number, ECHILD where it has ended. Nothing is waited
    /// for: its stops and its end are left to the part of this process that waits for children.
    /// </summary>
    /// <param name="thread">The thread.</param>
    /// <param name="stop">The signal that it stopped for; a PTRACE_EVENT in the second byte, or <see cref="SyscallStop"/>.</param>
    public static int TryGetStop(int thread, out int stop)
    {
        var information = stackalloc int[32];   // siginfo_t: 128 bytes; signo, errno, code
        stop = 0;
        if (ptrace(PTRACE_GETSIGINFO, thread, 0, (nint)information) == 0)
        {
            stop = information[2] == SyscallStop || information[2] >> 8 == PTRACE_EVENT_STOP ? information[2] : information[0];
            return 1;
        }

        new Span<int>(information, 32).Clear();
        if (waitid(P_PID, (uint)thread, information, Pidfd.WEXITED | WNOWAIT | Pidfd.WNOHANG | __WALL) != 0) return -Marshal.GetLastPInvokeError();
        return information[0] != 0 && information[2] is >= Pidfd.CLD_EXITED and <= CLD_DUMPED ? -Errno.ECHILD : 0;
    }

    private static int TransferRegisters(int request, int thread, Span<ulong> registers, out int length)
    {
        fixed (ulong* first = registers)
        {
            var vector = new IoVec { iov_base = first, iov_len = (nuint)(registers.Length * sizeof(ulong)) };
            var error = Result(ptrace(request, thread, NT_PRSTATUS, (nint)(&vector)));
            length = (int)vector.iov_len;
            return error;
        }
    }

    private static int Result(nint result) => result >= 0 ? 0 : Marshal.GetLastPInvokeError();

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint ptrace(nint request, int pid, nint addr, nint data);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int waitid(int idtype, uint id, void* infop, int options);
}
