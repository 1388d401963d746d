using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Wakes a thread that is in a system call: <c>tgkill(2)</c> with a signal that does nothing else.</summary>
internal static partial class Signals
{
    // Ignored by default: a signal that arrives late has no effect.
    public const int SIGURG = 23;

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

    [LibraryImport("libc")]
    private static partial int gettid();

    [LibraryImport("libc")]
    private static partial int tgkill(int tgid, int tid, int sig);
}
