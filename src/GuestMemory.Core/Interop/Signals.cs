using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct sigaction</c>, the parts used.</summary>
[StructLayout(LayoutKind.Explicit, Size = 152)]
internal struct SigAction
{
    [FieldOffset(136)] public int sa_flags;
}

/// <summary>Wakes a thread that is in a system call: <c>tgkill(2)</c> with a signal that does nothing else.</summary>
internal static partial class Signals
{
    // Ignored by default: a signal that arrives late has no effect.
    public const int SIGURG = 23;

    public const int SIGCHLD = 17;
    public const int SA_NOCLDSTOP = 1;

    // .NET's handler; without a handler the kernel would not interrupt the call.
    private static readonly Lazy<PosixSignalRegistration> s_handler = new(static () => PosixSignalRegistration.Create((PosixSignal)SIGURG, static context => context.Cancel = true));

    /// <summary>The number of this thread, and the readiness of the process to have its threads woken.</summary>
    public static int Prepare()
    {
        _ = s_handler.Value;
        return gettid();
    }

    /// <summary>The number of this thread.</summary>
    public static int CurrentThread() => gettid();

    /// <summary>Interrupts the system call that a thread of this process is in; no effect where it is in none, or has ended.</summary>
    public static void Wake(int thread) => Send(thread, SIGURG);

    /// <summary>Sends a signal to a thread of this process.</summary>
    public static void Send(int thread, int signal) => _ = tgkill(Environment.ProcessId, thread, signal);

    /// <summary>
    /// Says whether this process is to get SIGCHLD where a child, or a thread that it traces, stops: .NET would ask what has ended, and take a stop
    /// for an end. Returns whether that is a change.
    /// </summary>
    public static unsafe bool TellOfStops(bool isTold)
    {
        SigAction action;
        if (sigaction(SIGCHLD, null, &action) != 0 || (action.sa_flags & SA_NOCLDSTOP) == 0 == isTold) return false;
        action.sa_flags ^= SA_NOCLDSTOP;
        return sigaction(SIGCHLD, &action, null) == 0;
    }

    [LibraryImport("libc")]
    private static unsafe partial int sigaction(int signum, SigAction* act, SigAction* oldact);

    [LibraryImport("libc")]
    private static partial int gettid();

    [LibraryImport("libc")]
    private static partial int tgkill(int tgid, int tid, int sig);
}
