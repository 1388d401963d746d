using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>What tests ask of this process: what is left open, and whether something has come about.</summary>
internal static class Host
{
    /// <summary>
    /// How long a test waits for what must come. It is of no account where the machine is quick, long enough for one that is busy, and
    /// shorter than the silence that the watch takes for a hang (tests/watch.sh).
    /// </summary>
    public static TimeSpan Patience { get; } = TimeSpan.FromSeconds(100);

    /// <summary>A test reads what is, not what was 20 ms ago.</summary>
    [ModuleInitializer]
    internal static void AskAnew() => RemoteUffdHandler.Fresh = TimeSpan.Zero;

    /// <summary>Waits for a condition.</summary>
    /// <exception cref="TimeoutException">It did not come within <see cref="Patience"/>.</exception>
    public static void Until(Func<bool> condition, [CallerArgumentExpression(nameof(condition))] string text = "")
    {
        for (var clock = Stopwatch.StartNew(); !condition(); Thread.Sleep(10))
        {
            if (clock.Elapsed > Patience) throw new TimeoutException($"After {Patience.TotalSeconds} s still not: {text}");
        }
    }

    /// <summary>The handler that runs in processes of its own. One that does not answer in time, on a busy machine, is not found at once.</summary>
    public static UffdHandler OnlyHandler()
    {
        IReadOnlyList<UffdHandler> found = [];
        Until(() => (found = UffdHandler.FindAll()).Count > 0);
        return Assert.Single(found);
    }

    /// <summary>
    /// What is open before a test does its work, for <see cref="AssertNoneLeft"/>. What earlier tests left to the finalizers goes
    /// first: it would make room for a leak.
    /// </summary>
    public static HostResources Resources()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        return Count();
    }

    /// <summary>Waits until no more is open than before; fewer is no leak.</summary>
    public static void AssertNoneLeft(HostResources before)
    {
        try
        {
            Until(() => Count() is var now && now.Descriptors <= before.Descriptors && now.Threads <= before.Threads);
        }
        catch (TimeoutException)
        {
            Assert.Fail($"{before} before, {Count()} now: {string.Join(", ", Descriptors())}");
        }
    }

    private static HostResources Count() => new(Descriptors().Count(), Threads("uffd-") + Threads("guest-memory-ac"));

    // Those that handlers, registrations and requests use, and memfds.
    private static IEnumerable<string> Descriptors() => Directory.GetFiles("/proc/self/fd").Select(static link => new FileInfo(link).LinkTarget ?? "").Where(static target =>
        target.Contains("userfaultfd", StringComparison.Ordinal) || target.Contains("eventfd", StringComparison.Ordinal) || target.StartsWith("socket:", StringComparison.Ordinal)
        || IsMemfd(target) || target.Contains("/gm-", StringComparison.Ordinal));

    /// <summary>Whether a process listens at a socket: it may be there before that.</summary>
    public static bool IsListenedAt(string path) => File.ReadLines("/proc/net/unix").Any(line => line.EndsWith(" " + path, StringComparison.Ordinal) && line.Contains(" 00010000 ", StringComparison.Ordinal));

    // The runtime has one of its own.
    private static bool IsMemfd(string target) => target.StartsWith("/memfd:", StringComparison.Ordinal) && !target.Contains("doublemapper", StringComparison.Ordinal);

    /// <summary>Threads whose name begins so; the kernel keeps 15 characters.</summary>
    public static int Threads(string prefix)
    {
        var count = 0;
        foreach (var task in Directory.GetDirectories("/proc/self/task"))
        {
            try
            {
                if (File.ReadAllText(Path.Combine(task, "comm")).StartsWith(prefix, StringComparison.Ordinal)) count++;
            }
            catch (IOException)
            {
                // The thread has just ended.
            }
        }

        return count;
    }
}
