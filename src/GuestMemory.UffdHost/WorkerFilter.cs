using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>
/// The system calls that a worker makes while it serves. It reads what hostile VMs send, so that it may make no others: the kernel ends it (SIGSYS), and
/// the supervisor starts another. The calls were found by tracing workers through all tests of the handler's processes; what each is for stands beside it.
/// </summary>
internal static class WorkerFilter
{
    private const uint OpenToWrite = OwnSession.O_ACCMODE | OwnSession.O_CREAT | OwnSession.O_TRUNC | OwnSession.UnnamedFile;

    /// <summary>Limits this process from now on. Everything that needs a file must be open.</summary>
    /// <exception cref="SyscallException">The kernel cannot do that.</exception>
    public static void Enter() => Seccomp.Enter(Seccomp.Assemble(Rules(!RuntimeFeature.IsDynamicCodeCompiled, Environment.ProcessId), RuntimeInformation.ProcessArchitecture));

    /// <summary>What the calls of a worker do.</summary>
    /// <param name="isNative">Whether the program was compiled ahead; a runtime that compiles makes memory executable, and reads its libraries when they are used.</param>
    /// <param name="process">The worker.</param>
    public static IEnumerable<SeccompRule> Rules(bool isNative, int process)
    {
        var self = SeccompCheck.IsOneOf(0, (uint)process);
        var isData = isNative ? [SeccompCheck.HasNone(2, Mman.PROT_EXEC)] : Array.Empty<SeccompCheck>();
        return
        [
            // Descriptors: userfaultfds and eventfds are read, eventfds, the channel and the log written.
            .. Allowed("read", "write", "close"),
            // Events without waiting, and chunks of an image.
            .. Allowed("preadv2", "pread64"),
            // The image of a VM that is exported while it runs; no other file is open for writing.
            .. Allowed("pwrite64"),
            // What kind of file a descriptor is, before .NET reads from it; with an empty path.
            .. Allowed("fstat", "lseek"),
            SeccompRule.Allow("statx", SeccompCheck.HasAll(2, FileStatus.AT_EMPTY_PATH)) with { Otherwise = isNative ? Error(Errno.ENOENT) : Seccomp.SECCOMP_RET_ALLOW },
            SeccompRule.Allow("newfstatat", SeccompCheck.HasAll(3, FileStatus.AT_EMPTY_PATH)) with { Otherwise = isNative ? Error(Errno.ENOENT) : Seccomp.SECCOMP_RET_ALLOW },
            SeccompRule.Allow("fcntl", SeccompCheck.IsOneOf(1, OwnSession.F_GETFD, OwnSession.F_SETFD, OwnSession.F_GETFL, OwnSession.F_SETFL, Memfd.F_GET_SEALS, Descriptor.F_DUPFD_CLOEXEC)),

            // VMs: their pages and events; whether a VMM lives; its end, as OnError says.
            SeccompRule.Allow("ioctl", SeccompCheck.IsOneOf(1, Userfaultfd.UFFDIO_COPY, Userfaultfd.UFFDIO_ZEROPAGE, Userfaultfd.UFFDIO_WAKE, Userfaultfd.UFFDIO_CONTINUE,
                Userfaultfd.UFFDIO_POISON, Userfaultfd.UFFDIO_WRITEPROTECT, Userfaultfd.UFFDIO_REGISTER, Userfaultfd.UFFDIO_UNREGISTER)) with { Otherwise = isNative ? Seccomp.SECCOMP_RET_KILL_PROCESS : Error(Errno.ENOTTY) },
            SeccompRule.Allow("pidfd_send_signal", SeccompCheck.IsOneOf(1, Pidfd.SIGKILL)),
            // A page that is put together out of parts of the image that may not be there.
            SeccompRule.Allow("process_vm_readv", self),
            // The channel, whose messages bring descriptors, and the connection of a VM, of which only the end is looked for.
            .. Allowed("sendmsg", "recvmsg", "recvfrom"),

            // Waiting.
            .. Allowed("poll", "ppoll", "epoll_wait", "epoll_pwait", "epoll_ctl", "eventfd2", "futex", "sched_yield", "nanosleep", "clock_nanosleep", "restart_syscall"),
            // Times, where they are not read without a call.
            .. Allowed("clock_gettime", "clock_getres", "gettimeofday"),

            // Memory: the heap, stacks, room for pages, and the states of VMs; whether an image is in memory, and to bring it there.
            SeccompRule.Allow("mmap", isData),
            SeccompRule.Allow("mprotect", isData),
            .. Allowed("munmap", "mremap", "madvise", "mincore", "brk", "membarrier"),
            // How much of it the host has, and this process may have, for the heap: each collection asks anew. No limit is set.
            .. Allowed("sysinfo", "getrusage"),
            SeccompRule.Allow("prlimit64", SeccompCheck.IsOneOf(0, 0, (uint)process), SeccompCheck.IsOneOf(2, 0)),

            // Threads: one for each VM, fetchers, readers ahead. A new process is none; clone3 hides what it starts from a filter.
            SeccompRule.Allow("clone", SeccompCheck.IsOneOf(0, ThreadFlags.Start, ThreadFlags.MuslStart)),
            SeccompRule.Fail("clone3", Errno.ENOSYS),
            .. Allowed("set_robust_list", "rseq", "gettid", "getpid", "exit", "exit_group", "sched_getaffinity", "sched_setaffinity", "getcpu", "sigaltstack"),
            SeccompRule.Allow("prctl", SeccompCheck.IsOneOf(0, ThreadFlags.PR_SET_NAME, ThreadFlags.PR_SET_VMA)) with { Otherwise = Error(Errno.EINVAL) },
            // Fills in the background and reading ahead come after all else.
            .. Allowed("setpriority", "ioprio_set"),
            // The collector stops threads by signals, and a service that is late to end is interrupted by one.
            .. Allowed("rt_sigaction", "rt_sigprocmask", "rt_sigreturn"),
            SeccompRule.Allow("tgkill", self),
            .. Allowed("getrandom"),

            .. Files(isNative),
            .. isNative ? [] : OfRuntime,
        ];
    }

    /// <summary>
    /// No file is opened. The runtime tries to (how much memory is there?), and goes on without it. Where it compiles, it reads the libraries that are used
    /// for the first time: files are opened for reading alone then, and its threads stay without names, which it would write to /proc.
    /// </summary>
    private static IEnumerable<SeccompRule> Files(bool isNative)
    {
        string[] looks = ["access", "faccessat", "faccessat2", "readlink", "readlinkat", "stat", "lstat", "getcwd"];
        if (isNative) return [.. looks.Append("open").Append("openat").Select(static call => SeccompRule.Fail(call, Errno.ENOENT))];
        return
        [
            .. Allowed(looks),
            .. Allowed("getdents64", "ftruncate"),
            SeccompRule.Allow("open", SeccompCheck.HasNone(1, OpenToWrite)) with { Otherwise = Error(Errno.EACCES) },
            SeccompRule.Allow("openat", SeccompCheck.HasNone(2, OpenToWrite)) with { Otherwise = Error(Errno.EACCES) },
        ];
    }

    /// <summary>What a runtime that compiles does besides: the priority of each thread that it starts, a pipe to wait for it, and at the end its debugger's pipes.</summary>
    private static IEnumerable<SeccompRule> OfRuntime =>
    [
        .. Allowed("pipe2", "sched_get_priority_max", "sched_get_priority_min", "sched_setscheduler", "sched_getparam", "sched_getscheduler"),
        SeccompRule.Fail("unlink", Errno.ENOENT),
    ];

    private static IEnumerable<SeccompRule> Allowed(params string[] calls) => calls.Select(static call => SeccompRule.Allow(call));

    private static uint Error(int error) => Seccomp.SECCOMP_RET_ERRNO | (uint)error;
}
