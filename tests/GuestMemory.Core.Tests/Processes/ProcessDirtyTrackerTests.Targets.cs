using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <content>Processes in every state: they go on as if nothing had been, or are refused and unharmed.</content>
public sealed partial class ProcessDirtyTrackerTests
{
    private const int SIGCONT = 18;

    // The first that programs may use with glibc; each one that is sent comes.
    private const int SIGRTMIN = 34;

    [TrackingTheory]
    [InlineData("read", "1 0")]
    [InlineData("nanosleep", "0 0")]
    [InlineData("futex", "0 0")]
    [InlineData("futextimed", "0 0")]
    [InlineData("poll", "1 0")]
    [InlineData("polltimed", "1 0")]
    [InlineData("ppoll", "1 0")]
    [InlineData("select", "1 0")]
    [InlineData("epoll", "1 0")]
    [InlineData("epolltimed", "1 0")]
    [InlineData("epollpwait", "1 0")]
    [InlineData("epollhandler", "-1 4")]
    [InlineData("sigtimedwait", "12 0")]
    [InlineData("pause", "-1 4")]
    [InlineData("sigsuspend", "-1 4")]
    [InlineData("semop", "0 0")]
    [InlineData("semtimedop", "0 0")]
    [InlineData("msgrcv", "1 0")]
    [InlineData("accept", "0 0")]
    [InlineData("wait", "0 0")]
    [InlineData("spin", "0 0")]
    public void ACallThatIsInterruptedEndsAsItWouldHave(string call, string result)
    {
        using var process = Start("anon", 64);
        Assert.Equal("waiting", process.Ask($"b {call}"));
        if (call != "spin") Host.Until(() => process.State == 'S');
        var answer = process.ReadLineAsync();
        for (var i = 0; i < 3; i++)
        {
            using var tracker = process.Track();
            Assert.False(answer.IsCompleted && call != "nanosleep");
        }

        using (var tracker = process.Track())
        {
            if (call != "nanosleep") process.Write("go");
            Assert.Equal(result, answer.Result);
            process.Do("w 5");
            Assert.Equal([5L], Pages(tracker.GetDirtyBitmap()));
        }
    }

    [TrackingFact]
    public void NoSignalIsLost()
    {
        const int Signals = 2000;
        using var process = Start("anon", 64);
        var sender = Task.Run(() =>
        {
            for (var i = 0; i < Signals; i++)
            {
                Assert.True(Signal(process.Id, SIGRTMIN));
                if (i % 10 == 0) Thread.Yield();
            }
        });
        var count = 0;
        do
        {
            using var tracker = process.Track();
            count++;
        }
        while (!sender.IsCompleted);
        sender.Wait();
        output.WriteLine($"{count} trackings during {Signals} signals");
        Host.Until(() => process.Ask("c") == $"{Signals}");
    }

    [TrackingFact]
    public void AStoppedProcessStaysStopped()
    {
        using var process = Start("anon", 64);
        Assert.True(Signal(process.Id, Pidfd.SIGSTOP));
        Host.Until(() => process.State == 'T');
        using (var tracker = process.Track())
        {
            Host.Until(() => process.State == 'T');
            process.Write("w 5");
            Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
            Assert.Equal('T', process.State);
            Assert.True(Signal(process.Id, SIGCONT));
            Assert.Equal("ok", process.ReadLine());
            Assert.Equal([5L], Pages(tracker.GetDirtyBitmap()));
        }

        process.Do("w 6");
    }

    /// <summary>A stop that comes meanwhile is not swallowed, and a thread that stands still for one is not let go.</summary>
    [TrackingFact]
    public void StopsThatComeMeanwhileCount()
    {
        using var process = Start("anon", 64);
        for (var round = 0; round < 30; round++)
        {
            var stopper = Task.Run(() => Signal(process.Id, Pidfd.SIGSTOP));
            using (process.Track()) stopper.Wait();
            Host.Until(() => process.State == 'T');
            Assert.True(Signal(process.Id, SIGCONT));
            process.Do("w 5");
        }
    }

    [TrackingTheory]
    [InlineData("kill")]
    [InlineData("refuse")]
    public void AProcessUnderASeccompFilterIsTrackedOrRefused(string action)
    {
        using var process = Start("anon", 64, action);
        var descriptors = process.DescriptorCount;
        // A filter of the caller's own is in the way, as missing rights are.
        Sandbox.WithoutPoison(() =>
        {
            var failure = Assert.ThrowsAny<GuestMemoryException>(() => process.Track());
            Assert.Equal(GuestMemoryError.ProcessDenied, failure.Error);
            Assert.Contains("seccomp", failure.Message, StringComparison.Ordinal);
        });
        process.AssertUnharmed(descriptors);
        if (!Needs.Root) return;
        using var tracker = process.Track();
        process.Do("w 5");
        Assert.Equal([5L], Pages(tracker.GetDirtyBitmap()));
        Assert.Equal(("2", descriptors), (process.Status("Seccomp"), process.DescriptorCount));
    }

    [TrackingFact]
    public void AProcessWithoutRightsIsTracked()
    {
        Assert.SkipUnless(Needs.Root, "needs root, to become another user");
        using var process = Start("anon", 64, "nobody");
        Assert.StartsWith("65534", process.Status("Uid"), StringComparison.Ordinal);
        _ = AssertExact(process, 64, isGivenBack: true);
    }

    [TrackingFact]
    public void AnotherUserIsRefused()
    {
        Assert.SkipUnless(Needs.Root, "needs root, to become another user");
        using var process = Start("anon", 64);
        var descriptors = process.DescriptorCount;
        Stress.RunAll(() =>
        {
            Capabilities.Drop(0, new UserAccount(65534, 65534, []), wholeProcess: false);
            Assert.Equal(GuestMemoryError.ProcessDenied, Failure(() => process.Track()));
        });
        process.AssertUnharmed(descriptors);
    }

    [TrackingFact]
    public void AProcessThatIsTracedIsRefused()
    {
        using var process = Start("anon", 64);
        using (var tracer = Process.Start(new ProcessStartInfo(program.Path, ["trace", $"{process.Id}"]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!)
        {
            Assert.Equal("tracing", tracer.StandardOutput.ReadLine());
            var failure = Assert.ThrowsAny<GuestMemoryException>(() => process.Track());
            Assert.Equal(GuestMemoryError.ProcessTraced, failure.Error);
            Assert.Contains($"process {tracer.Id} ", failure.Message, StringComparison.Ordinal);
            tracer.StandardInput.Close();
            tracer.WaitForExit();
        }

        using var tracked = process.Track();
    }

    [TrackingFact]
    public void A32BitProgramIsRefused()
    {
        var path = program.Path32;
        Assert.SkipWhen(path is null, "needs a compiler that makes 32-bit programs");
        Process? process = null;
        try
        {
            process = Process.Start(new ProcessStartInfo(path!) { UseShellExecute = false });
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            Assert.Skip($"needs a kernel that runs 32-bit programs: {exception.Message}");
        }

        using (process)
        {
            var mapping = ProcessMapping.GetAll(process!.Id)[0];
            var failure = Assert.ThrowsAny<GuestMemoryException>(() => ProcessDirtyTracker.Start(process.Id, mapping.Address, mapping.Size));
            Assert.Equal(GuestMemoryError.ProcessUnsupported, failure.Error);
            Assert.Contains("32-bit", failure.Message, StringComparison.Ordinal);
            Assert.True(IsAlive(process.Id));
            process.Kill();
            process.WaitForExit();
        }
    }

    [TrackingFact]
    public void WhatCannotBeTrackedIsRefusedAndUnharmed()
    {
        using var process = Start("anon", 64);
        var (descriptors, page) = (process.DescriptorCount, process.PageSize);
        (GuestMemoryError Error, Func<ProcessDirtyTracker> Start)[] cases =
        [
            (GuestMemoryError.ProcessNotFound, () => ProcessDirtyTracker.Start(int.MaxValue, process.Address, page)),
            (GuestMemoryError.ProcessNotFound, () => ProcessDirtyTracker.Start(0, process.Address, page)),
            (GuestMemoryError.ProcessNotFound, () => ProcessDirtyTracker.Start(-1, process.Address, page)),
            (GuestMemoryError.ValueNotSupported, () => ProcessDirtyTracker.Start(Environment.ProcessId, process.Address, page)),
            (GuestMemoryError.ZeroSize, () => ProcessDirtyTracker.Start(process.Id, process.Address, 0)),
            (GuestMemoryError.NotPageAligned, () => ProcessDirtyTracker.Start(process.Id, process.Address + 1, page)),
            (GuestMemoryError.UnalignedSize, () => ProcessDirtyTracker.Start(process.Id, process.Address, page + 1)),
            (GuestMemoryError.RangeNotMapped, () => ProcessDirtyTracker.Start(process.Id, page, page)),
            (GuestMemoryError.RangeNotMapped, () => ProcessDirtyTracker.Start(process.Id, process.Address, 1UL << 46)),
            (GuestMemoryError.RangeNotMapped, () => ProcessDirtyTracker.Start(process.Id, process.Address, 0UL - page)),
            (GuestMemoryError.RangeNotMapped, () => ProcessDirtyTracker.Start(process.Id, 0UL - page, page)),
        ];
        foreach (var (error, start) in cases) Assert.Equal(error, Failure(() => start()));
        Sandbox.WithoutPagemapScan(() => Assert.Equal(GuestMemoryError.UffdUnsupported, Failure(() => process.Track())));
        process.Do("u 10 1");
        Assert.Equal(process.Address + (10 * page), Assert.ThrowsAny<GuestMemoryException>(() => process.Track()).Address);
        process.AssertUnharmed(descriptors);
    }

    [TrackingFact]
    public void AThreadOfTheKernelIsRefused()
    {
        const int Kthreadd = 2;
        Assert.SkipUnless(Needs.Root && File.Exists($"/proc/{Kthreadd}/comm") && File.ReadAllText($"/proc/{Kthreadd}/comm") == "kthreadd\n", "needs root, and sight of the kernel's threads");
        Assert.Contains(Failure(() => ProcessDirtyTracker.Start(Kthreadd, 4096, 4096)), new[] { GuestMemoryError.RangeNotMapped, GuestMemoryError.ProcessUnsupported });
    }

    [TrackingFact]
    public void ARangeThatIsTrackedAlreadyIsRefused()
    {
        using var process = Start("anon", 64);
        var descriptors = process.DescriptorCount;
        using var tracker = process.Track();
        Assert.Equal(GuestMemoryError.RangeInUse, Failure(() => process.Track()));
        Assert.Equal(GuestMemoryError.RangeInUse, Failure(() => ProcessDirtyTracker.Start(process.Id, process.Address + (8 * process.PageSize), process.PageSize)));
        process.AssertUnharmed(descriptors);
        Assert.Equal([0L], Pages(tracker.GetDirtyBitmap()));
    }

    [TrackingFact]
    public void MemoryThatCannotBeWrittenIsRefused()
    {
        File.WriteAllBytes(_folder["memory"], new byte[64 * 4096]);
        using var process = Start("readonly", 64);
        Assert.Equal(GuestMemoryError.UffdRegisterFailed, Failure(() => process.Track()));
        Assert.Equal("0", process.Ask("c"));
    }
}
