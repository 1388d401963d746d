using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// A program and whatever it has started, as one process group (<c>setpgid(2)</c>): signalled at once, and waited for until none of
/// them is left.
/// </summary>
internal static unsafe partial class ProcessGroup
{
    public const int P_PGID = 2;
    public const int PR_SET_CHILD_SUBREAPER = 36;

    /// <summary>
    /// Makes children of this process of those whose parents end, however deep below it they are (<c>PR_SET_CHILD_SUBREAPER</c>), so that
    /// <see cref="HasEnded"/> sees them.
    /// </summary>
    public static void AdoptOrphans(bool adopt) => _ = prctl(PR_SET_CHILD_SUBREAPER, adopt ? 1u : 0u, 0, 0, 0);

    /// <summary>Kills every process of a group. The number stays the group's until its first process, a child, was reaped.</summary>
    public static void Kill(int group) => _ = kill(-group, Pidfd.SIGKILL);

    /// <summary>Reaps the children of this process in a group; whether none is left. For one whose orphans are adopted.</summary>
    public static bool HasEnded(int group)
    {
        var information = stackalloc int[32];   // siginfo_t, 128 bytes: signo is 0 where children run
        while (true)
        {
            new Span<int>(information, 32).Clear();
            if (waitid(P_PGID, (uint)group, information, Pidfd.WEXITED | Pidfd.WNOHANG) != 0)
            {
                if (Marshal.GetLastPInvokeError() == Errno.EINTR) continue;
                return true;
            }

            if (information[0] == 0) return false;
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int waitid(int idtype, uint id, void* infop, int options);

    [LibraryImport("libc")]
    private static partial int kill(int pid, int sig);

    [LibraryImport("libc")]
    private static partial int prctl(int option, nuint arg2, nuint arg3, nuint arg4, nuint arg5);
}
