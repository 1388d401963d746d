using System.Globalization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Lets a worker die where it hurts, for the tests of its successor: GUESTMEMORY_UFFD_DEBUG=die-after-read=N kills the process
/// when it has read events for the N-th time and done nothing about them yet.
/// </summary>
internal static class UffdDebug
{
    public const string Variable = "GUESTMEMORY_UFFD_DEBUG";
    private const string DieAfterRead = "die-after-read=";

    private static int s_reads = Environment.GetEnvironmentVariable(Variable) is { } text && text.StartsWith(DieAfterRead, StringComparison.Ordinal)
        && int.TryParse(text.AsSpan(DieAfterRead.Length), NumberStyles.None, CultureInfo.InvariantCulture, out var reads) ? reads : 0;

    public static readonly bool IsArmed = s_reads > 0;

    public static void AfterRead(int events)
    {
        if (events <= 0 || --s_reads > 0) return;
        using var self = Pidfd.TryOpen(Environment.ProcessId, out _);
        if (self is not null) _ = Pidfd.TrySignal(self, Pidfd.SIGKILL);
    }
}
