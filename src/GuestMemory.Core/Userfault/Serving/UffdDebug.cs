using System.Globalization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Brings a handler's processes into states that are rare otherwise, for tests. GUESTMEMORY_UFFD_DEBUG is one of:
/// die-after-read=N, a worker kills itself when it has read events for the N-th time and done nothing about them yet;
/// hold-counts=PATH, a worker does not count the fault that it has just answered while the file PATH, which is there from the start, has content;
/// stop-when-started, the supervisor stops (SIGSTOP) after it has reported its start;
/// die-at-step=N and stop-at-step=N, a program that is to take a handler over kills or stops itself there: 1, started; 2, its worker is
/// ready; 3, it has the VMs; 4, it was told to serve them; 5, its worker serves them, and it has not said so.
/// </summary>
internal static class UffdDebug
{
    public const string Variable = "GUESTMEMORY_UFFD_DEBUG";

    private static readonly string[] s_setting = (Environment.GetEnvironmentVariable(Variable) ?? "").Split('=', 2);
    private static readonly FileStream? s_hold = ValueOf("hold-counts") is { } path ? new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite) : null;
    private static int s_reads = int.TryParse(ValueOf("die-after-read"), NumberStyles.None, CultureInfo.InvariantCulture, out var reads) ? reads : 0;

    /// <summary>Whether this process is a worker that is to get into such a state. What it rehearses before does not count.</summary>
    public static bool IsArmed { get; private set; }

    /// <summary>Opens what it needs, for a worker that is about to serve and will open no more files.</summary>
    public static void Prepare() => IsArmed = s_reads > 0 || s_hold is not null;

    public static void AfterRead(int events)
    {
        if (s_reads > 0 && events > 0 && --s_reads == 0) Signal(Pidfd.SIGKILL);
    }

    public static void BeforeCount()
    {
        while (s_hold is { Length: > 0 }) Thread.Sleep(1);
    }

    public static void WhenStarted()
    {
        if (s_setting[0] == "stop-when-started") Signal(Pidfd.SIGSTOP);
    }

    public static void AtStep(int step)
    {
        if (!int.TryParse(ValueOf("die-at-step") ?? ValueOf("stop-at-step"), NumberStyles.None, CultureInfo.InvariantCulture, out var wanted) || wanted != step) return;
        Signal(s_setting[0] == "die-at-step" ? Pidfd.SIGKILL : Pidfd.SIGSTOP);
    }

    private static string? ValueOf(string name) => s_setting is [var first, var value] && first == name ? value : null;

    private static void Signal(int signal)
    {
        Signals.Send(Signals.CurrentThread(), signal);
    }
}
