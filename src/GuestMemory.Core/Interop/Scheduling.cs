using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>The priority of threads (<c>setpriority(2)</c>; on Linux the nice value is a thread's own).</summary>
internal static partial class Scheduling
{
    public const int PRIO_PROCESS = 0;

    /// <summary>Raises the calling thread's nice value: 0 is what all have, 19 takes only what nobody else wants.</summary>
    public static void LowerThread(int nice) => _ = setpriority(PRIO_PROCESS, 0, nice);

    [LibraryImport("libc")]
    private static partial int setpriority(int which, uint who, int prio);
}
