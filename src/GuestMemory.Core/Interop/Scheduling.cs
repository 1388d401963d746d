using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>The priority of threads (<c>setpriority(2)</c>; on Linux the nice value is a thread's own) and the processors that they run on.</summary>
internal static unsafe partial class Scheduling
{
    public const int PRIO_PROCESS = 0;
    public const int IOPRIO_WHO_PROCESS = 1;
    public const int IOPRIO_CLASS_IDLE = 3;
    public const int IOPRIO_CLASS_SHIFT = 13;

    private static readonly nint s_ioprioSet = RuntimeInformation.ProcessArchitecture == Architecture.X64 ? 251 : 30;

    // 8192 processors, the most that a kernel for these machines can be built for.
    private const int MaskWords = 128;

    /// <summary>Raises the calling thread's nice value: 0 is the default, 19 runs only where a processor is idle otherwise.</summary>
    public static void LowerThread(int nice) => _ = setpriority(PRIO_PROCESS, 0, nice);

    /// <summary>What the calling thread reads from disks, it reads when nobody else wants to (<c>ioprio_set(2)</c>); nice values have no effect on that.</summary>
    public static void LowerDisk() => _ = syscall(s_ioprioSet, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT);

    /// <summary>What the calling thread reads from disks has the priority that follows from its nice value, as with a new thread.</summary>
    public static void ResetDisk() => _ = syscall(s_ioprioSet, IOPRIO_WHO_PROCESS, 0, 0);

    /// <summary>The processor that the calling thread runs on; it may have left it already.</summary>
    public static int CurrentProcessor() => sched_getcpu();

    /// <summary>
    /// Moves the calling thread to another processor that it may run on, if there is one. Its affinity mask does not change.
    /// </summary>
    public static void LeaveProcessor()
    {
        var allowed = stackalloc ulong[MaskWords];
        var others = stackalloc ulong[MaskWords];
        if (sched_getaffinity(0, MaskWords * sizeof(ulong), allowed) < 0) return;
        new Span<ulong>(allowed, MaskWords).CopyTo(new Span<ulong>(others, MaskWords));
        var current = sched_getcpu();
        if (current < 0) return;
        others[current / 64] &= ~(1UL << (current % 64));
        if (sched_setaffinity(0, MaskWords * sizeof(ulong), others) == 0) _ = sched_setaffinity(0, MaskWords * sizeof(ulong), allowed);
    }

    [LibraryImport("libc"), SuppressGCTransition]
    private static partial int sched_getcpu();

    [LibraryImport("libc")]
    private static partial int sched_getaffinity(int pid, nuint cpusetsize, ulong* mask);

    [LibraryImport("libc")]
    private static partial int sched_setaffinity(int pid, nuint cpusetsize, ulong* mask);

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint which, nint who, nint priority);

    [LibraryImport("libc")]
    private static partial int setpriority(int which, uint who, int prio);
}
