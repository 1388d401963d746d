using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// What a thread may do (<c>capabilities(7)</c>). The kernel keeps capabilities, users and groups for each thread; a process that is started has those of the
/// thread that starts it. A set of capabilities is a number with a bit for each.
/// </summary>
internal static unsafe partial class Capabilities
{
    public const int CAP_FOWNER = 3;
    public const int CAP_KILL = 5;
    public const int CAP_SETGID = 6;
    public const int CAP_SETUID = 7;
    public const int CAP_SETPCAP = 8;

    public const int PR_SET_KEEPCAPS = 8;
    public const int PR_CAPBSET_READ = 23;
    public const int PR_CAPBSET_DROP = 24;
    public const int PR_SET_NO_NEW_PRIVS = 38;
    public const int PR_CAP_AMBIENT = 47;
    public const int PR_CAP_AMBIENT_RAISE = 2;
    public const int PR_CAP_AMBIENT_CLEAR_ALL = 4;

    public const uint LINUX_CAPABILITY_VERSION_3 = 0x20080522;

    private const int Most = 64;

    /// <summary>The capabilities that the calling thread may use.</summary>
    public static ulong Current
    {
        get
        {
            var data = stackalloc UserCapData[2];
            var header = new UserCapHeader { version = LINUX_CAPABILITY_VERSION_3 };
            return syscall(SystemCalls.Number("capget"), (nint)(&header), (nint)data, 0) == 0 ? data[0].permitted | (ulong)data[1].permitted << 32 : 0;
        }
    }

    /// <summary>The set of one capability.</summary>
    public static ulong SetOf(int capability) => 1UL << capability;

    /// <summary>Has the calling thread, and what it starts, gain no rights by starting a program.</summary>
    public static void RefuseNewPrivileges()
    {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) throw Failed("prctl(PR_SET_NO_NEW_PRIVS)");
    }

    /// <summary>
    /// Gives up all capabilities of the calling thread but some, for itself and for what it starts, and changes its user. It cannot get more again.
    /// </summary>
    /// <param name="kept">Those that it keeps, as far as it has them.</param>
    /// <param name="user">As whom it is to run; null for no change.</param>
    /// <param name="wholeProcess">Whether the user of all other threads changes, too; they lose all capabilities by that.</param>
    /// <exception cref="SyscallException">One of the calls fails.</exception>
    public static void Drop(ulong kept, UserAccount? user, bool wholeProcess)
    {
        var current = Current;
        kept &= current;
        // Without that right no program that is started gets more than the thread has, either: no_new_privs sees to it.
        if ((current & SetOf(CAP_SETPCAP)) != 0) DropBounds(kept);
        if (user is not null && user.User != Users.Current) Change(user, wholeProcess);
        var data = stackalloc UserCapData[2];
        for (var i = 0; i < 2; i++) data[i].effective = data[i].permitted = data[i].inheritable = (uint)(kept >> (32 * i));
        var header = new UserCapHeader { version = LINUX_CAPABILITY_VERSION_3 };
        if (syscall(SystemCalls.Number("capset"), (nint)(&header), (nint)data, 0) != 0) throw Failed("capset");
        // Those that a program of a user other than root has from its start. Kernels before 4.3 know none.
        _ = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        for (var capability = 0; capability < Most; capability++)
        {
            if ((kept & SetOf(capability)) != 0) _ = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
        }

        RefuseNewPrivileges();
    }

    private static void DropBounds(ulong kept)
    {
        for (var capability = 0; capability < Most; capability++)
        {
            var has = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
            // The kernel has no more of them.
            if (has < 0) return;
            if (has == 1 && (kept & SetOf(capability)) == 0 && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) throw Failed("prctl(PR_CAPBSET_DROP)");
        }
    }

    private static void Change(UserAccount user, bool wholeProcess)
    {
        // Or the change would take all capabilities; that of the other threads does.
        if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0) throw Failed("prctl(PR_SET_KEEPCAPS)");
        fixed (uint* groups = user.Groups)
        {
            // The C library's functions change every thread, the kernel's calls this one.
            var error = wholeProcess ? setgroups((nuint)user.Groups.Length, groups) : (int)syscall(SystemCalls.Number("setgroups"), user.Groups.Length, (nint)groups, 0);
            if (error != 0) throw Failed("setgroups");
        }

        nint group = (nint)user.Group, number = (nint)user.User;
        if ((wholeProcess ? setresgid(user.Group, user.Group, user.Group) : (int)syscall(SystemCalls.Number("setresgid"), group, group, group)) != 0) throw Failed("setresgid");
        if ((wholeProcess ? setresuid(user.User, user.User, user.User) : (int)syscall(SystemCalls.Number("setresuid"), number, number, number)) != 0) throw Failed("setresuid");
    }

    private static SyscallException Failed(string function) => new(function, Marshal.GetLastPInvokeError(), "Giving up rights that serving does not need");

    [LibraryImport("libc", SetLastError = true)]
    private static partial int prctl(int option, nint arg2, nint arg3, nint arg4, nint arg5);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint first, nint second, nint third);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setgroups(nuint size, uint* list);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setresgid(uint rgid, uint egid, uint sgid);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setresuid(uint ruid, uint euid, uint suid);
}
