namespace GuestMemory.Core.Tests;

/// <summary>What tests ask of this process: what is left open, and whether something has come about.</summary>
internal static class Host
{
    /// <summary>Waits for a condition, at most 10 s; the assertion that follows says whether it came.</summary>
    public static void Until(Func<bool> condition)
    {
        for (var i = 0; i < 1000 && !condition(); i++) Thread.Sleep(10);
    }

    /// <summary>Descriptors that handlers, registrations and requests use, memfds, and the threads of handlers.</summary>
    public static (int Descriptors, int Threads) Resources() =>
        (Directory.GetFiles("/proc/self/fd").Count(link => new FileInfo(link).LinkTarget is { } target
            && (target.Contains("userfaultfd", StringComparison.Ordinal) || target.Contains("eventfd", StringComparison.Ordinal) || target.StartsWith("socket:", StringComparison.Ordinal) || IsMemfd(target) || target.Contains("/gm-", StringComparison.Ordinal))),
        Threads("uffd-") + Threads("guest-memory-ac"));

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
