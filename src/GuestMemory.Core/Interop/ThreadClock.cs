using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct timespec</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct TimeSpec
{
    public nint tv_sec;
    public nint tv_nsec;
}

/// <summary>The processor time of threads of this process (<c>clock_gettime(2)</c>), and pauses of less than a millisecond.</summary>
internal static partial class ThreadClock
{
    // Of the clock whose number is made of a thread's, as pthread_getcpuclockid(3) makes it: per thread, and by the scheduler.
    private const int PerThreadScheduled = 6;

    /// <summary>The processor time of a thread up to now, in nanoseconds; false where it has ended.</summary>
    public static bool TryRead(int thread, out long nanoseconds)
    {
        var error = clock_gettime((~thread << 3) | PerThreadScheduled, out var time);
        nanoseconds = (time.tv_sec * 1_000_000_000L) + time.tv_nsec;
        return error == 0;
    }

    /// <summary>Sleeps for so many nanoseconds, less than a second; a signal ends it early.</summary>
    public static void Pause(int nanoseconds)
    {
        var duration = new TimeSpec { tv_nsec = nanoseconds };
        _ = nanosleep(in duration, 0);
    }

    [LibraryImport("libc")]
    private static partial int clock_gettime(int clockid, out TimeSpec tp);

    [LibraryImport("libc")]
    private static partial int nanosleep(in TimeSpec duration, nint rem);
}
