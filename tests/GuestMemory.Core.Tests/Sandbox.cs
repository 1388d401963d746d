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

    /// <summary>Runs an action on a thread where SO_PEERPIDFD is unknown, as before Linux 6.5; threads and processes that it starts inherit that.</summary>
    public static void WithoutPeerPidfd(Action action) => Run(action, IfArgument(s_x64 ? 55u : 209u /* getsockopt */, 32 /* the third argument */, Pidfd.SO_PEERPIDFD, 92 /* ENOPROTOOPT */));

    /// <summary>The same for UFFDIO_POISON, as before Linux 6.6.</summary>
    public static void WithoutPoison(Action action) => Run(action, IfArgument(s_x64 ? 16u : 29u /* ioctl */, 24 /* the second argument */, Userfaultfd.UFFDIO_POISON, Errno.EINVAL));

    /// <summary>The same for PAGEMAP_SCAN, as before Linux 6.7.</summary>
    public static void WithoutPagemapScan(Action action) => Run(action, IfArgument(s_x64 ? 16u : 29u, 24, Pagemap.PAGEMAP_SCAN, Errno.ENOTTY));

    /// <summary>The same for SIOCUNIXFILE, as without CAP_NET_ADMIN.</summary>
    public static void WithoutSocketFiles(Action action) => Run(action, IfArgument(s_x64 ? 16u : 29u, 24, UnixSocket.SIOCUNIXFILE, Errno.EPERM));

    /// <summary>The same where no process may be signalled by its descriptor, as one of another user may not.</summary>
    public static void WithoutSignals(Action action) => Run(action, [Load(0), JumpIf(Pidfd.SYS_pidfd_send_signal, 0, 1), Fail(Errno.EPERM), Allow]);

    /// <summary>Runs an action on a thread; before each chown of it, by path or by descriptor, something else happens (SECCOMP_RET_USER_NOTIF).</summary>
    public static void BeforeChown(Action before, Action action)
    {
        var listener = new TaskCompletionSource<int>();
        var watcher = Task.Run(() => Watch(listener.Task.Result, before));
        // lchown, which the generic table has not, and fchownat.
        SockFilter[] program = [Load(0), JumpIf(s_x64 ? 94u : 54u, 1, 0), JumpIf(s_x64 ? 260u : 54u, 0, 1), new() { code = 0x06, k = 0x7fc00000 }, Allow];
        Stress.RunAll(() =>
        {
            fixed (SockFilter* filter = program)
            {
                var description = new SockFprog { len = (ushort)program.Length, filter = filter };
                Assert.Equal(0, prctl(38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0));
                listener.SetResult((int)syscall(s_x64 ? 317 : 277 /* seccomp */, 1 /* SECCOMP_SET_MODE_FILTER */, 8 /* NEW_LISTENER */, (nint)(&description)));
            }

            action();
        });
        watcher.Wait();
    }

    /// <summary>Lets each call go on after something else has happened; ends with the thread that makes them.</summary>
    private static void Watch(int number, Action before)
    {
        Assert.InRange(number, 0, int.MaxValue);
        using var listener = new SafeDescriptor(number);
        var notification = stackalloc ulong[10];
        var response = stackalloc ulong[3];
        Span<PollFd> entry = [new PollFd { fd = number, events = Poll.POLLIN }];
        while (true)
        {
            _ = Poll.Wait(entry, -1);
            if ((entry[0].revents & Poll.POLLIN) == 0) return;
            new Span<ulong>(notification, 10).Clear();
            Assert.Equal(0, ioctl(number, 0xC0502100 /* SECCOMP_IOCTL_NOTIF_RECV */, notification));
            before();
            (response[0], response[1], response[2]) = (notification[0], 0, 1UL << 32 /* SECCOMP_USER_NOTIF_FLAG_CONTINUE */);
            Assert.Equal(0, ioctl(number, 0xC0182101 /* SECCOMP_IOCTL_NOTIF_SEND */, response));
        }
    }

    private static SockFilter[] IfArgument(uint call, uint offset, uint value, int error) => [Load(0), JumpIf(call, 0, 3), Load(offset), JumpIf(value, 0, 1), Fail(error), Allow];

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

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint first, nint second, nint third);

    [LibraryImport("libc")]
    private static partial int ioctl(int fd, nuint request, void* argument);
}
