using System.Globalization;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <content>The sources that are less exact: what they tell, and what they do not.</content>
public sealed partial class ProcessDirtyTrackerTests
{
    [TrackingTheory]
    [InlineData("anon", 1500, true)]
    [InlineData("memfd", 1500, false)]
    [InlineData("file", 1500, false)]
    [InlineData("thp", 2048, false)]
    public void ComparedWhatChangedIsTold(string kind, int pages, bool isGivenBack)
    {
        using var process = Start(kind, pages);
        // What lies in a file comes in neighbourhoods.
        if (!isGivenBack) process.Do($"w {string.Join(' ', Enumerable.Range(0, pages))}");
        Assert.Equal(HostPage.Size, AssertWhatChanged(process, pages, isGivenBack, isThere: !isGivenBack));
    }

    [TrackingTheory]
    [InlineData("huge")]
    [InlineData("hugememfd")]
    public void ComparedHugePagesAreToldInTheirOwnSize(string kind)
    {
        const int Pages = 6;
        Assert.SkipUnless(Needs.Root && Directory.Exists("/sys/kernel/mm/hugepages/hugepages-2048kB"), "needs huge pages of 2 MiB, and root to set the size of their pool");
        using var pool = new HugePagePoolOf(2 << 20, Pages + 1);
        Assert.SkipUnless(pool.Free > Pages, "the pool of huge pages could not be filled");
        using var process = Start(kind, Pages);
        Assert.Equal(2UL << 20, AssertWhatChanged(process, Pages, isGivenBack: false, isThere: false));
    }

    /// <summary>A sample does not tell what a write leaves as it was; the kernel does.</summary>
    [TrackingFact]
    public void WhatIsWrittenWithWhatItHadIsNoChange()
    {
        using var process = Start("anon", 64);
        process.Do("w 1 2 3");
        using var exact = process.Track();
        using var compared = process.Track(ProcessTrackingSource.Compare);
        process.Do("o 2");
        Assert.Equal([2L], Pages(exact.GetDirtyBitmap()));
        Assert.Equal(0, compared.GetDirtyBitmap().DirtyCount);
        Assert.Equal((ProcessTrackingSource.Userfault, true, null), (exact.Source, exact.IsExact, exact.Reason));
        Assert.Equal((ProcessTrackingSource.Compare, false, TimeSpan.Zero), (compared.Source, compared.IsExact, compared.Standstill));
        Assert.Equal($"process {process.Id}, Compare", compared.GetDirtyBitmap().Source);
    }

    [TrackingFact]
    public void ComparingBringsNoPageIn()
    {
        using var process = Start("anon", 2000);
        process.Do("w 3 700");
        using var tracker = process.Track(ProcessTrackingSource.Compare);
        for (var i = 0; i < 3; i++) _ = tracker.GetDirtyBitmap(clear: true);
        using var pagemap = File.OpenHandle($"/proc/{process.Id}/pagemap");
        var entries = new ulong[2000];
        Assert.Equal(2000, Pagemap.TryRead(pagemap, process.Address, entries));
        Assert.Equal([3, 700], Enumerable.Range(0, 2000).Where(page => entries[page] >= Pagemap.Swapped));
    }

    /// <summary>A page that a userfaultfd protects and that never was there looks as if it were swapped out.</summary>
    [TrackingFact]
    public void ComparingBringsNoPageInThatIsProtected()
    {
        using var process = Start("anon", 600);
        using var exact = process.Track();
        using var compared = process.Track(ProcessTrackingSource.Compare);
        process.Do("w 5");
        Assert.Equal([5L], Pages(compared.GetDirtyBitmap(clear: true)));
        Assert.Equal(0, compared.GetDirtyBitmap().DirtyCount);
        Assert.Equal([5L], Pages(exact.GetDirtyBitmap()));
        using var pagemap = File.OpenHandle($"/proc/{process.Id}/pagemap");
        var entries = new ulong[600];
        Assert.Equal(600, Pagemap.TryRead(pagemap, process.Address, entries));
        Assert.Equal([5], Enumerable.Range(0, 600).Where(page => (entries[page] & Pagemap.Present) != 0));
    }

    [TrackingFact]
    public void MincoreTellsWhatBecamePresent()
    {
        using var process = Start("anon", 1500);
        process.Do("w 1");
        using var tracker = process.Track(ProcessTrackingSource.Mincore);
        Assert.Equal((ProcessTrackingSource.Mincore, false), (tracker.Source, tracker.IsExact));
        process.Do("w 1 700 1499");
        process.Do("r 3");
        Assert.Equal([3L, 700, 1499], Pages(tracker.GetDirtyBitmap()));
        Assert.Equal([3L, 700, 1499], Pages(tracker.GetDirtyBitmap(clear: true)));
        process.Do("w 3 700");
        process.Do("d 1499 1");
        Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
        process.Do("w 1499");
        Assert.Equal([1499L], Pages(tracker.GetDirtyBitmap()));
    }

    /// <summary>Where the kernel notes nothing, its success is not believed.</summary>
    [TrackingFact]
    public void SoftDirtyIsTriedBeforeItIsBelieved()
    {
        using var process = Start("anon", 64);
        var descriptors = process.DescriptorCount;
        if (!Pagemap.HasSoftDirty())
        {
            var failure = Assert.ThrowsAny<GuestMemoryException>(() => process.Track(ProcessTrackingSource.SoftDirty));
            Assert.Equal(GuestMemoryError.SoftDirtyUnsupported, failure.Error);
            Assert.Contains("CONFIG_MEM_SOFT_DIRTY", failure.Message, StringComparison.Ordinal);
            process.AssertUnharmed(descriptors);
            Assert.Skip("needs a kernel with CONFIG_MEM_SOFT_DIRTY; that it is refused without was shown");
        }

        process.Do("w 1 2 3");
        using var tracker = process.Track(ProcessTrackingSource.SoftDirty);
        Assert.Equal((ProcessTrackingSource.SoftDirty, false), (tracker.Source, tracker.IsExact));
        process.Do("w 2");
        Assert.Equal([2L], Pages(tracker.GetDirtyBitmap(clear: true)));
        Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
    }

    [TrackingFact]
    public void AutoTakesTheFirstThatIsNotRefused()
    {
        using var process = Start("anon", 64);
        using (var tracker = process.Track(ProcessTrackingSource.Auto))
        {
            Assert.Equal((ProcessTrackingSource.Userfault, null), (tracker.Source, tracker.Reason));
            // Its range is in use now.
            using var second = process.Track(ProcessTrackingSource.Auto);
            Assert.False(second.IsExact);
            Assert.Contains("Another userfaultfd", second.Reason, StringComparison.Ordinal);
        }

        Sandbox.WithoutPagemapScan(() =>
        {
            using var tracker = process.Track(ProcessTrackingSource.Auto);
            process.Do("w 7");
            Assert.Equal([7L], Pages(tracker.GetDirtyBitmap()));
            Assert.Contains("Userfault: ", tracker.Reason, StringComparison.Ordinal);
            Assert.Contains("Linux 6.7", tracker.Reason, StringComparison.Ordinal);
            if (!Pagemap.HasSoftDirty()) Assert.Contains("SoftDirty: ", tracker.Reason, StringComparison.Ordinal);
            Assert.Equal(Pagemap.HasSoftDirty() ? ProcessTrackingSource.SoftDirty : ProcessTrackingSource.Compare, tracker.Source);
        });
        // What is wrong with the range is wrong by each source.
        Assert.Equal(GuestMemoryError.ZeroSize, Failure(() => ProcessDirtyTracker.Start(process.Id, process.Address, 0, ProcessTrackingSource.Auto)));
        Assert.Equal(GuestMemoryError.RangeNotMapped, Failure(() => ProcessDirtyTracker.Start(process.Id, process.PageSize, process.PageSize, ProcessTrackingSource.Auto)));
    }

    [TrackingFact]
    public void ARefusalNamesTheOtherSources()
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track();
        var failure = Assert.ThrowsAny<GuestMemoryException>(() => process.Track());
        Assert.Equal(GuestMemoryError.RangeInUse, failure.Error);
        Assert.Contains("Compare, SoftDirty, Mincore", failure.Message, StringComparison.Ordinal);
        Assert.DoesNotContain("Compare", Assert.ThrowsAny<GuestMemoryException>(() => ProcessDirtyTracker.Start(process.Id, process.PageSize, process.PageSize)).Message, StringComparison.Ordinal);
    }

    /// <summary>The rights that a seccomp filter takes are not needed to compare.</summary>
    [TrackingFact]
    public void AProcessUnderASeccompFilterIsCompared()
    {
        using var process = Start("anon", 64, "kill");
        Sandbox.WithoutPoison(() =>
        {
            Assert.Equal(GuestMemoryError.ProcessDenied, Failure(() => process.Track()));
            using var tracker = process.Track(ProcessTrackingSource.Compare);
            process.Do("w 5");
            Assert.Equal([5L], Pages(tracker.GetDirtyBitmap()));
        });
    }

    [TrackingFact]
    public unsafe void ThisProcessIsCompared()
    {
        const int Pages = 16;
        var memory = (byte*)NativeMemory.AlignedAlloc(Pages * (nuint)HostPage.Size, (nuint)HostPage.Size);
        try
        {
            new Span<byte>(memory, Pages * (int)HostPage.Size).Fill(1);
            using var tracker = ProcessDirtyTracker.Start(Environment.ProcessId, (ulong)memory, Pages * HostPage.Size, ProcessTrackingSource.Compare);
            memory[5 * (int)HostPage.Size] = 2;
            Assert.Equal([5L], ProcessDirtyTrackerTests.Pages(tracker.GetDirtyBitmap()));
        }
        finally
        {
            NativeMemory.AlignedFree(memory);
        }
    }

    [TrackingTheory]
    [InlineData(ProcessTrackingSource.Compare)]
    [InlineData(ProcessTrackingSource.Mincore)]
    public void ASampledProcessThatIsNotTheSameIsTold(ProcessTrackingSource source)
    {
        using (var process = Start("anon", 1500))
        {
            using var tracker = process.Track(source);
            process.Kill();
            Assert.Equal(GuestMemoryError.ProcessEnded, Failure(() => tracker.GetDirtyBitmap(clear: true)));
            Assert.Equal(ProcessTrackingState.Ended, tracker.State);
            Assert.Equal(GuestMemoryError.ProcessNotFound, Failure(() => process.Track(source)));
        }

        using (var process = Start("anon", 64))
        {
            using var tracker = process.Track(source);
            process.Do("x");
            Host.Until(() => File.ReadAllText($"/proc/{process.Id}/comm") == "cat\n");
            Assert.Equal(GuestMemoryError.ProcessEnded, Failure(() => tracker.GetDirtyBitmap()));
        }

        foreach (var range in (string[])["0 1", "30 2", "63 1"])
        {
            using var process = Start("anon", 64);
            using var tracker = process.Track(source);
            process.Do($"u {range}");
            Assert.Equal(GuestMemoryError.RangeNotMapped, Failure(() => tracker.GetDirtyBitmap()));
        }
    }

    /// <summary>Also what lies in the middle of a process's life: it is tracked, or what is wrong with it is told.</summary>
    [TrackingFact]
    public void AComparedProcessThatIsKilledMeanwhileIsTold()
    {
        for (var round = 0; round < 20; round++)
        {
            using var process = Start("anon", 3000);
            process.Do("s 1 1");
            using var tracker = process.Track(ProcessTrackingSource.Compare);
            using var start = new ManualResetEventSlim();
            var spins = round * 10_000;
            var killer = Task.Run(() =>
            {
                start.Wait();
                Thread.SpinWait(spins);
                process.Kill();
            });
            start.Set();
            GuestMemoryError? error = null;
            while (error is null)
            {
                try
                {
                    // What is there does not seem to change as the process goes.
                    Assert.Equal(0, tracker.GetDirtyBitmap(clear: true).DirtyCount);
                }
                catch (GuestMemoryException exception)
                {
                    error = exception.Error;
                }
            }

            Assert.Equal(GuestMemoryError.ProcessEnded, error);
            killer.Wait();
        }
    }

    [TrackingTheory]
    [InlineData(ProcessTrackingSource.Userfault)]
    [InlineData(ProcessTrackingSource.Compare)]
    [InlineData(ProcessTrackingSource.Mincore)]
    public void NobodyWaitsForAQueryThatRuns(ProcessTrackingSource source)
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track(source);
        var states = new List<ProcessTrackingState>();
        Task? stop = null;
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Failure(() => tracker.GetDirtyBitmap(progress: _ =>
        {
            var state = Task.Run(() => tracker.State);
            Assert.True(state.Wait(Host.Patience), "the state waits for the query");
            states.Add(state.Result);
            stop ??= Task.Run(tracker.Dispose);
            Host.Until(() => tracker.State == ProcessTrackingState.Stopped);
        })));
        Assert.Equal(ProcessTrackingState.Tracking, states[0]);
        Assert.True(stop!.Wait(Host.Patience));
        process.Do("w 1");
    }

    [TrackingTheory]
    [InlineData(ProcessTrackingSource.Userfault)]
    [InlineData(ProcessTrackingSource.Compare)]
    public void WhatACancelledQueryFoundIsToldByTheNext(ProcessTrackingSource source)
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track(source);
        process.Do("w 5");
        using (var stop = new CancellationTokenSource())
            Assert.ThrowsAny<OperationCanceledException>(() => tracker.GetDirtyBitmap(clear: true, _ => stop.Cancel(), stop.Token));
        Assert.Equal([5L], Pages(tracker.GetDirtyBitmap(clear: true)));
        Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
    }

    [TrackingTheory]
    [InlineData(ProcessTrackingSource.Compare)]
    [InlineData(ProcessTrackingSource.Mincore)]
    public void NothingOfASampleIsLeft(ProcessTrackingSource source)
    {
        using var process = Start("anon", 64);
        process.Do("w 1 2 3");
        var descriptors = process.DescriptorCount;
        process.Track(source).Dispose();
        var before = Host.Resources();
        using (var tracker = process.Track(source))
        {
            Assert.False(process.IsWatched);
            Host.Until(() => process.State == 'S');
            var switches = (process.Status("voluntary_ctxt_switches"), process.Status("nonvoluntary_ctxt_switches"));
            for (var i = 0; i < 10; i++) Assert.Equal(0, tracker.GetDirtyBitmap(clear: true).DirtyCount);
            Assert.Equal(switches, (process.Status("voluntary_ctxt_switches"), process.Status("nonvoluntary_ctxt_switches")));
        }

        using (var stop = new CancellationTokenSource())
            Assert.ThrowsAny<OperationCanceledException>(() => ProcessDirtyTracker.Start(process.Id, process.Address, process.Size, source, _ => stop.Cancel(), stop.Token));
        process.AssertUnharmed(descriptors);
        Host.AssertNoneLeft(before);
    }

    /// <summary>Rounds of random writes, reads and pages given back; the page size.</summary>
    private ulong AssertWhatChanged(TrackedProcess process, int pages, bool isGivenBack, bool isThere)
    {
        // What each page has: null where it is not there, 0 where it came by a read.
        var now = new int?[pages];
        if (isThere) Array.Fill(now, 1);
        using var tracker = process.Track(ProcessTrackingSource.Compare);
        Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
        for (var round = 0; round < s_rounds; round++)
        {
            var random = new Random(round);
            var before = now.ToArray();
            var written = Enumerable.Range(0, random.Next(1, Math.Min(pages, 100))).Select(_ => random.Next(pages)).ToArray();
            process.Do($"w {string.Join(' ', written)}");
            foreach (var page in written) now[page] = round + 2;
            if (isGivenBack && round % 3 == 0)
            {
                var (first, count) = (random.Next(pages / 2), random.Next(1, pages / 2));
                process.Do(string.Create(CultureInfo.InvariantCulture, $"d {first} {count}"));
                Array.Clear(now, first, count);
            }

            var read = Enumerable.Range(0, 20).Select(_ => random.Next(pages)).ToArray();
            process.Do($"r {string.Join(' ', read)}");
            foreach (var page in read) now[page] ??= 0;
            var expected = Enumerable.Range(0, pages).Where(page => before[page] != now[page]).Select(static page => (long)page).ToArray();
            if (round % 2 == 0) Assert.Equal(expected, Pages(tracker.GetDirtyBitmap()));
            var bitmap = tracker.GetDirtyBitmap(clear: true);
            Assert.True(expected.SequenceEqual(Pages(bitmap)), $"round {round}: {Stress.List(expected)}, not {Stress.List(Pages(bitmap))}");
            Assert.Equal((process.Address, process.Size), (bitmap.StartAddress, bitmap.ByteSize));
            Assert.Equal(0, tracker.GetDirtyBitmap(clear: true).DirtyCount);
        }

        return tracker.PageSize;
    }
}
