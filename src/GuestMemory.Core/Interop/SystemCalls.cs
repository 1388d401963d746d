using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>The numbers of system calls, by the names of the kernel's tables (<c>asm/unistd_64.h</c>, <c>asm-generic/unistd.h</c>).</summary>
internal static class SystemCalls
{
    // x86-64, then aarch64; -1 where the architecture has no such call.
    private static readonly Dictionary<string, (int X64, int Arm64)> s_numbers = new(StringComparer.Ordinal)
    {
        ["access"] = (21, -1),
        ["brk"] = (12, 214),
        ["capget"] = (125, 90),
        ["capset"] = (126, 91),
        ["clock_getres"] = (229, 114),
        ["clock_gettime"] = (228, 113),
        ["clock_nanosleep"] = (230, 115),
        ["clone"] = (56, 220),
        ["clone3"] = (435, 435),
        ["close"] = (3, 57),
        ["epoll_ctl"] = (233, 21),
        ["epoll_pwait"] = (281, 22),
        ["epoll_wait"] = (232, -1),
        ["eventfd2"] = (290, 19),
        ["exit"] = (60, 93),
        ["exit_group"] = (231, 94),
        ["faccessat"] = (269, 48),
        ["faccessat2"] = (439, 439),
        ["fcntl"] = (72, 25),
        ["fstat"] = (5, 80),
        ["ftruncate"] = (77, 46),
        ["futex"] = (202, 98),
        ["getcpu"] = (309, 168),
        ["getcwd"] = (79, 17),
        ["getdents64"] = (217, 61),
        ["getpid"] = (39, 172),
        ["getrandom"] = (318, 278),
        ["getrusage"] = (98, 165),
        ["gettid"] = (186, 178),
        ["gettimeofday"] = (96, 169),
        ["ioctl"] = (16, 29),
        ["ioprio_set"] = (251, 30),
        ["lseek"] = (8, 62),
        ["lstat"] = (6, -1),
        ["madvise"] = (28, 233),
        ["membarrier"] = (324, 283),
        ["mincore"] = (27, 232),
        ["mmap"] = (9, 222),
        ["mprotect"] = (10, 226),
        ["mremap"] = (25, 216),
        ["munmap"] = (11, 215),
        ["nanosleep"] = (35, 101),
        ["newfstatat"] = (262, 79),
        ["open"] = (2, -1),
        ["openat"] = (257, 56),
        ["pidfd_send_signal"] = (424, 424),
        ["pipe2"] = (293, 59),
        ["poll"] = (7, -1),
        ["ppoll"] = (271, 73),
        ["prctl"] = (157, 167),
        ["pread64"] = (17, 67),
        ["preadv2"] = (327, 286),
        ["prlimit64"] = (302, 261),
        ["process_vm_readv"] = (310, 270),
        ["read"] = (0, 63),
        ["readlink"] = (89, -1),
        ["readlinkat"] = (267, 78),
        ["recvfrom"] = (45, 207),
        ["recvmsg"] = (47, 212),
        ["restart_syscall"] = (219, 128),
        ["rseq"] = (334, 293),
        ["rt_sigaction"] = (13, 134),
        ["rt_sigprocmask"] = (14, 135),
        ["rt_sigreturn"] = (15, 139),
        ["sched_get_priority_max"] = (146, 125),
        ["sched_get_priority_min"] = (147, 126),
        ["sched_getaffinity"] = (204, 123),
        ["sched_getparam"] = (143, 121),
        ["sched_getscheduler"] = (145, 120),
        ["sched_setaffinity"] = (203, 122),
        ["sched_setscheduler"] = (144, 119),
        ["sched_yield"] = (24, 124),
        ["seccomp"] = (317, 277),
        ["sendmsg"] = (46, 211),
        ["set_robust_list"] = (273, 99),
        ["setgroups"] = (116, 159),
        ["setpriority"] = (141, 140),
        ["setresgid"] = (119, 149),
        ["setresuid"] = (117, 147),
        ["sigaltstack"] = (131, 132),
        ["stat"] = (4, -1),
        ["statx"] = (332, 291),
        ["sysinfo"] = (99, 179),
        ["tgkill"] = (234, 131),
        ["unlink"] = (87, -1),
        ["write"] = (1, 64),
    };

    /// <summary>Every name.</summary>
    public static IEnumerable<string> Names => s_numbers.Keys;

    /// <summary>The number of a call on the architecture that this process runs on; -1 where it has no such call.</summary>
    public static int Number(string name) => Number(name, RuntimeInformation.ProcessArchitecture);

    /// <summary>The number of a call on an architecture; -1 where it has no such call.</summary>
    public static int Number(string name, Architecture architecture) => architecture == Architecture.X64 ? s_numbers[name].X64 : s_numbers[name].Arm64;
}
