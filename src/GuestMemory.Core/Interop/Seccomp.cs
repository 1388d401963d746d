using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Which system calls a process may make (<c>seccomp(2)</c>): the filter is a small program that the kernel runs at each call.</summary>
internal static unsafe partial class Seccomp
{
    public const uint SECCOMP_SET_MODE_FILTER = 1;
    public const uint SECCOMP_FILTER_FLAG_TSYNC = 1;
    public const uint SECCOMP_RET_KILL_PROCESS = 0x80000000;
    public const uint SECCOMP_RET_ERRNO = 0x00050000;
    public const uint SECCOMP_RET_ALLOW = 0x7fff0000;

    public const uint AUDIT_ARCH_X86_64 = 0xC000003E;
    public const uint AUDIT_ARCH_AARCH64 = 0xC00000B7;

    public const ushort BPF_LD = 0x00;
    public const ushort BPF_ALU = 0x04;
    public const ushort BPF_JMP = 0x05;
    public const ushort BPF_RET = 0x06;
    public const ushort BPF_W = 0x00;
    public const ushort BPF_ABS = 0x20;
    public const ushort BPF_K = 0x00;
    public const ushort BPF_AND = 0x50;
    public const ushort BPF_JA = 0x00;
    public const ushort BPF_JEQ = 0x10;
    public const ushort BPF_JGE = 0x30;

    // The x32 ABI: the same architecture, and numbers from here on.
    private const uint FirstX32 = 0x40000000;

    // Where struct seccomp_data has its parts; of an argument the lower half, on these machines the first.
    private const uint NumberOffset = 0;
    private const uint ArchitectureOffset = 4;
    private const uint ArgumentsOffset = 16;

    private const int MaxSkip = byte.MaxValue;

    /// <summary>
    /// The filter that has each call do what its rule says, and ends the process at any other, at one of another architecture and, on
    /// x86-64, at one of the x32 ABI. Calls that the architecture has not are left out.
    /// </summary>
    public static SockFilter[] Assemble(IEnumerable<SeccompRule> rules, Architecture architecture)
    {
        var sorted = rules.Select(rule => (Number: SystemCalls.Number(rule.Call, architecture), Rule: rule)).Where(static item => item.Number >= 0).OrderBy(static item => item.Number).ToArray();
        var isX64 = architecture == Architecture.X64;
        return
        [
            Load(ArchitectureOffset),
            JumpIf(BPF_JEQ, isX64 ? AUDIT_ARCH_X86_64 : AUDIT_ARCH_AARCH64, 1, 0),
            Return(SECCOMP_RET_KILL_PROCESS),
            Load(NumberOffset),
            .. isX64 ? [JumpIf(BPF_JGE, FirstX32, 0, 1), Return(SECCOMP_RET_KILL_PROCESS)] : Array.Empty<SockFilter>(),
            .. Search(sorted),
        ];
    }

    /// <summary>Has all threads of this process, and what they start, make only the calls that a filter lets them make. There is no way back.</summary>
    /// <exception cref="SyscallException">The kernel has no filters, or refuses this one.</exception>
    public static void Enter(ReadOnlySpan<SockFilter> filter)
    {
        Capabilities.RefuseNewPrivileges();
        fixed (SockFilter* instructions = filter)
        {
            var program = new SockFprog { len = (ushort)filter.Length, filter = instructions };
            // A positive number is that of a thread that has another filter.
            var result = syscall(SystemCalls.Number("seccomp"), (nint)SECCOMP_SET_MODE_FILTER, (nint)SECCOMP_FILTER_FLAG_TSYNC, &program);
            if (result != 0) throw new SyscallException("seccomp", result < 0 ? Marshal.GetLastPInvokeError() : Errno.EBUSY, "Limiting the system calls of this process");
        }
    }

    /// <summary>Finds the rule of a number by halves; every way through it ends in a return.</summary>
    private static SockFilter[] Search(ReadOnlySpan<(int Number, SeccompRule Rule)> rules)
    {
        if (rules.Length == 1)
        {
            var body = Body(rules[0].Rule);
            return [JumpIf(BPF_JEQ, (uint)rules[0].Number, 0, Skip(body.Length)), .. body, Return(SECCOMP_RET_KILL_PROCESS)];
        }

        var middle = rules.Length / 2;
        var lower = Search(rules[..middle]);
        // A conditional jump goes no further than 255 instructions.
        return
        [
            JumpIf(BPF_JGE, (uint)rules[middle].Number, 0, 1),
            new SockFilter { code = BPF_JMP | BPF_JA, k = (uint)lower.Length },
            .. lower,
            .. Search(rules[middle..]),
        ];
    }

    private static SockFilter[] Body(SeccompRule rule)
    {
        var body = new List<SockFilter>();
        foreach (var check in rule.Checks)
        {
            body.Add(Load(ArgumentsOffset + (uint)(check.Argument * sizeof(ulong))));
            if (check.Mask != uint.MaxValue) body.Add(new SockFilter { code = BPF_ALU | BPF_AND | BPF_K, k = check.Mask });
            for (var left = check.Values.Length; left > 0; left--) body.Add(JumpIf(BPF_JEQ, check.Values[^left], Skip(left), 0));
            body.Add(Return(rule.Otherwise));
        }

        body.Add(Return(rule.Action));
        return [.. body];
    }

    private static byte Skip(int count) => count <= MaxSkip ? (byte)count : throw new ArgumentOutOfRangeException(nameof(count), count, "A rule is too long.");

    private static SockFilter Load(uint offset) => new() { code = BPF_LD | BPF_W | BPF_ABS, k = offset };

    private static SockFilter JumpIf(ushort condition, uint value, byte yes, byte no) => new() { code = (ushort)(BPF_JMP | condition | BPF_K), jt = yes, jf = no, k = value };

    private static SockFilter Return(uint action) => new() { code = BPF_RET | BPF_K, k = action };

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint operation, nint flags, SockFprog* args);
}
