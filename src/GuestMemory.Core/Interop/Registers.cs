using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// The general registers of a stopped thread (NT_PRSTATUS) as words: <c>struct user_regs_struct</c> on x86-64, by the indices of
/// <c>sys/reg.h</c>, and <c>struct user_pt_regs</c> on aarch64 (31 registers, stack pointer, program counter, state).
/// </summary>
internal static class Registers
{
    public const int RAX = 10;
    public const int RDI = 14;
    public const int ORIG_RAX = 15;
    public const int RIP = 16;

    private const int Arm64Number = 8;
    private const int Arm64ProgramCounter = 32;

    // What the kernel has in the register of the result where a call was interrupted; programs never see it.
    private const long RestartUnlessHandled = -514;   // ERESTARTNOHAND

    // They fail with EINTR also where a thread was only stopped; signal(7) lists them.
    private static readonly HashSet<int> s_interruptible = [.. new[]
    {
        "epoll_wait", "epoll_pwait", "epoll_pwait2", "io_getevents", "io_pgetevents", "io_uring_enter", "rt_sigtimedwait", "semop", "semtimedop",
    }.Select(SystemCalls.Number)];

    private static readonly bool s_isX64 = RuntimeInformation.ProcessArchitecture == Architecture.X64;

    /// <summary>The number of words.</summary>
    public static int Count => s_isX64 ? 27 : 34;

    /// <summary>Where an instruction that makes a system call is in code that begins with an instruction; -1 where there is none.</summary>
    public static int FindSyscallInstruction(ReadOnlySpan<byte> code)
    {
        // x86-64: syscall, at any byte, also inside another instruction.
        if (s_isX64) return code.IndexOf([(byte)0x0F, (byte)0x05]);
        // aarch64: svc #0.
        return MemoryMarshal.Cast<byte, uint>(code).IndexOf(0xD4000001) is var at and >= 0 ? at * sizeof(uint) : -1;
    }

    /// <summary>The address of the next instruction.</summary>
    public static ref ulong NextInstruction(Span<ulong> registers) => ref registers[s_isX64 ? RIP : Arm64ProgramCounter];

    /// <summary>Prepares a system call with one argument.</summary>
    /// <param name="registers">Those of a stopped thread.</param>
    /// <param name="instruction">The address of an instruction that makes a system call.</param>
    /// <param name="number">The call.</param>
    /// <param name="argument">Its argument.</param>
    public static void SetCall(Span<ulong> registers, ulong instruction, int number, ulong argument)
    {
        NextInstruction(registers) = instruction;
        registers[s_isX64 ? RAX : Arm64Number] = (ulong)number;
        registers[s_isX64 ? RDI : 0] = argument;
        // Not in a call: the kernel does not restart one with these registers.
        if (s_isX64) registers[ORIG_RAX] = ulong.MaxValue;
    }

    /// <summary>What a system call returned, at its end.</summary>
    public static long ResultOf(ReadOnlySpan<ulong> registers) => unchecked((long)registers[s_isX64 ? RAX : 0]);

    /// <summary>
    /// Has a call that failed with EINTR because its thread was stopped begin anew, unless a handler of the program runs first. The kernel
    /// restarts the other calls itself. On aarch64 the first argument is lost by now, and the program sees EINTR.
    /// </summary>
    public static void RestartInterrupted(Span<ulong> registers)
    {
        if (s_isX64 && ResultOf(registers) == -Errno.EINTR && registers[ORIG_RAX] <= int.MaxValue && s_interruptible.Contains((int)registers[ORIG_RAX]))
            registers[RAX] = unchecked((ulong)RestartUnlessHandled);
    }
}
