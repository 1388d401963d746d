using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>A sandbox of one thread (<c>seccomp(2)</c>), as a container has it: some system calls fail with an error number.</summary>
internal static unsafe partial class Sandbox
{
    private static readonly bool s_x64 = RuntimeInformation.ProcessArchitecture == Architecture.X64;

    /// <summary>Runs an action on a thread for which process_vm_readv(2) and process_vm_writev(2) fail.</summary>
    public static void WithoutProcessVm(int error, Action action) => Run(action,
    [
        Load(0),
        JumpIf(s_x64 ? 310u : 270u, 1, 0),
        JumpIf(s_x64 ? 311u : 271u, 0, 1),
        Fail(error),
        Allow,
    ]);

    /// <summary>Runs an action on a thread for which madvise(2) knows no MADV_POPULATE_READ and MADV_POPULATE_WRITE, as before Linux 5.14.</summary>
    public static void WithoutPopulate(Action action) => Run(action,
    [
        Load(0),
        JumpIf(s_x64 ? 28u : 233u, 0, 4),
        Load(32 /* the third argument */),
        JumpIf(Mman.MADV_POPULATE_READ, 1, 0),
        JumpIf(Mman.MADV_POPULATE_WRITE, 0, 1),
        Fail(Errno.EINVAL),
        Allow,
    ]);

    /// <summary>Runs an action on a thread for which, and for all that it starts, preadv2(2) knows no flags, as a userfaultfd before Linux 6.10.</summary>
    public static void WithoutNoWait(Action action) => Run(action,
    [
        Load(0),
        JumpIf(s_x64 ? 327u : 286u, 0, 1),
        Fail(Errno.EOPNOTSUPP),
        Allow,
    ]);

    private static SockFilter Allow => new() { code = 0x06 /* BPF_RET */, k = 0x7fff0000 };

    private static SockFilter Fail(int error) => new() { code = 0x06, k = 0x00050000 | (uint)error };

    private static SockFilter Load(uint offset) => new() { code = 0x20 /* BPF_LD | BPF_W | BPF_ABS */, k = offset };

    private static SockFilter JumpIf(uint value, byte equal, byte other) => new() { code = 0x15 /* BPF_JMP | BPF_JEQ */, jt = equal, jf = other, k = value };

    private static void Run(Action action, SockFilter[] program) => Stress.RunAll(() =>
    {
        fixed (SockFilter* filter = program)
        {
            var description = new SockFprog { len = (ushort)program.Length, filter = filter };
            Assert.Equal(0, prctl(38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0));
            Assert.Equal(0, prctl(22 /* PR_SET_SECCOMP */, 2 /* SECCOMP_MODE_FILTER */, (nint)(&description), 0, 0));
        }

        action();
    });

    [LibraryImport("libc")]
    private static partial int prctl(int option, nint arg2, nint arg3, nint arg4, nint arg5);

    private struct SockFilter
    {
        public ushort code;
        public byte jt;
        public byte jf;
        public uint k;
    }

    private struct SockFprog
    {
        public ushort len;
        public SockFilter* filter;
    }
}
