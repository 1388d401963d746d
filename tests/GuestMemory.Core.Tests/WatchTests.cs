using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>The watch under which the build runs this suite, over a run of this suite that hangs.</summary>
public sealed class WatchTests
{
    /// <summary>The worst hang: a collection waits for a thread, and with it every thread of the process.</summary>
    [UffdFact]
    public void AProcessThatStandsStillIsShownAndEnded()
    {
        using var folder = new TestFolder();
        string[] command = Path.GetFileName(Environment.ProcessPath) == "dotnet" ? ["dotnet", typeof(WatchTests).Assembly.Location] : [Environment.ProcessPath!];
        var (code, output) = Compiler.Run("bash", [Path.Combine(AppContext.BaseDirectory, "watch.sh"), "10", folder["log"], .. command,
            "-noLogo", "-noColor", "-reporter", "verbose", "-explicit", "only", "-method", $"*.{nameof(WatchTests)}.{nameof(StandStill)}"]);
        var log = File.ReadAllText(folder["log"]);
        Assert.True(code == 124, output + log);
        Assert.Contains($"{nameof(WatchTests)}.{nameof(StandStill)} [STARTING]", log, StringComparison.Ordinal);
        Assert.Contains("HANGS: nothing has been written for 10 s.", log, StringComparison.Ordinal);
        // The thread in its page fault, by the kernel; all of them by gdb; and what they do by the dump.
        // The runtime's signals, by which it would stop the thread, interrupt the fault for a moment now and then.
        var toucher = string.Join('\n', log.Split('\n').Where(static line => line.Contains("toucher", StringComparison.Ordinal)));
        Assert.Matches(@"'the-toucher' (S \(sleeping\) in (handle_userfault|0)|R \(running\) in )", toucher);
        Assert.True(log.Contains("Thread 1 (", StringComparison.Ordinal) || log.Contains("gdb is missing", StringComparison.Ordinal), log);
        Assert.True(log.Contains($"{nameof(WatchTests)}.{nameof(Touch)}", StringComparison.Ordinal) || log.Contains("dotnet-dump is missing", StringComparison.Ordinal), log);
        Assert.EndsWith("--- end of stacks\n", log, StringComparison.Ordinal);
    }

    /// <summary>Run by the other test alone.</summary>
    [Fact(Explicit = true)]
    public unsafe void StandStill()
    {
        using var userfaultfd = Userfaultfd.Create(0);
        using var region = new MmapRegionBuilder(4096).Build();
        var address = (nint)region.HostAddress;
        Assert.Equal(0, Userfaultfd.TryRegister(userfaultfd.Number, address, 4096, Userfaultfd.UFFDIO_REGISTER_MODE_MISSING));
        new Thread(() => Touch((byte*)address)) { Name = "the-toucher", IsBackground = true }.Start();
        Host.Until(() => Directory.GetDirectories("/proc/self/task").Any(task => File.ReadAllText(Path.Combine(task, "wchan")).Contains("userfault", StringComparison.Ordinal)));
        GC.Collect();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static unsafe byte Touch(byte* address) => *address;
}
