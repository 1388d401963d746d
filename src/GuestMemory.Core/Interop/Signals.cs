using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Wakes a thread that is in a system call: <c>tgkill(2)</c> with a signal that does nothing else.</summary>
internal static partial class Signals
{
    // Ignored by default: one that comes late, when nobody waits for it any more, harms nobody.
    public const int SIGURG = 23;

    // .NET's handler; without one the kernel would not even interrupt the call.
    private static readonly Lazy<PosixSignalRegistration> s_handler = new(static () => PosixSignalRegistration.Create((PosixSignal)SIGURG, static context => context.Cancel = true));

    /// <summary>The number of this thread, and the readiness of the process to have its threads woken.</summary>
    public static int Prepare()
    {
        _ = s_handler.Value;
        return gettid();
    }

    /// <summary>Interrupts the system call that a thread of this process is in; nothing happens where it is in none, or is gone.</summary>
    public static void Wake(int thread) => _ = tgkill(Environment.ProcessId, thread, SIGURG);

    [LibraryImport("libc")]
    private static partial int gettid();

    [LibraryImport("libc")]
    private static partial int tgkill(int tgid, int tid, int sig);
}
