using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>What a process that knows nothing of it wrote, against what it was told to write.</summary>
public sealed partial class ProcessDirtyTrackerTests(TrackedProgram program, ITestOutputHelper output) : IClassFixture<TrackedProgram>, IDisposable
{
    private static readonly int s_rounds = Setting("GUESTMEMORY_TRACKING_ROUNDS", 50);

    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [TrackingTheory]
    [InlineData("anon", 1000)]
    [InlineData("memfd", 1000)]
    [InlineData("file", 1000)]
    [InlineData("thp", 2048)]
    public void TheBitmapIsExact(string kind, int pages)
    {
        using var process = Start(kind, pages);
        Assert.Equal(HostPage.Size, AssertExact(process, pages, kind is "anon" or "thp"));
    }

    [TrackingTheory]
    [InlineData("huge")]
    [InlineData("hugememfd")]
    public void HugePagesAreTrackedInTheirOwnSize(string kind)
    {
        const int Pages = 12;
        Assert.SkipUnless(Needs.Root && Directory.Exists("/sys/kernel/mm/hugepages/hugepages-2048kB"), "needs huge pages of 2 MiB, and root to set the size of their pool");
        // One to spare: the kernel asks for one where it looks whether a range is watched.
        using var pool = new HugePagePoolOf(2 << 20, Pages + 1);
        Assert.SkipUnless(pool.Free > Pages, "the pool of huge pages could not be filled");
        using var process = Start(kind, Pages);
        Assert.Equal(2UL << 20, AssertExact(process, Pages, isGivenBack: false));
    }

    [TrackingFact]
    public void AStrippedStaticProgramIsTracked()
    {
        using var process = new TrackedProcess(program.StaticPath, "anon", 200, "-");
        _ = AssertExact(process, 200, isGivenBack: true);
    }

    /// <summary>-Clear is atomic with the read: while threads write each page once, every page is in one of the bitmaps.</summary>
    [TrackingTheory]
    [InlineData("anon", 1)]
    [InlineData("anon", 4)]
    [InlineData("memfd", 2)]
    [InlineData("anon", 2, ProcessTrackingSource.Compare)]
    public void NoWriteIsLostUnderWriters(string kind, int threads, ProcessTrackingSource source = ProcessTrackingSource.Userfault)
    {
        const int Pages = 20_000;
        using var process = Start(kind, Pages);
        using var tracker = process.Track(source);
        long reads = 0;
        for (var round = 0; round < s_rounds; round++)
        {
            process.Write($"s {round} {threads}");
            var answer = process.ReadLineAsync();
            var all = tracker.GetDirtyBitmap(clear: true);
            for (; !answer.IsCompleted; reads++) all = all.Or(tracker.GetDirtyBitmap(clear: true));
            Assert.Equal("ok", answer.Result);
            all = all.Or(tracker.GetDirtyBitmap(clear: true));
            Assert.True(all.DirtyCount == Pages, $"round {round}: {Pages - all.DirtyCount} pages are lost");
            Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
        }

        output.WriteLine($"{s_rounds} rounds, {reads} reads while {threads} threads wrote; it stood still for {tracker.Standstill.TotalMicroseconds:0} us");
    }

    [TrackingFact]
    public void TheProcessIsAsBeforeOnceItIsStopped()
    {
        using var process = Start("anon", 64);
        process.Do("w 1 2 3");
        var descriptors = process.DescriptorCount;
        var before = Host.Resources();
        using (var tracker = process.Track())
        {
            Assert.Equal((descriptors, "0", true), (process.DescriptorCount, process.Status("TracerPid"), process.IsWatched));
            Assert.Equal((process.Id, process.Address, process.Size, ProcessTrackingState.Tracking), (tracker.ProcessId, tracker.Address, tracker.Size, tracker.State));
            Assert.InRange(tracker.Standstill, TimeSpan.FromTicks(1), TimeSpan.MaxValue);
            tracker.Dispose();
            Assert.Equal(ProcessTrackingState.Stopped, tracker.State);
            Assert.Equal(GuestMemoryError.DirtyTrackingOff, Failure(() => tracker.GetDirtyBitmap()));
        }

        Assert.False(process.IsWatched);
        process.AssertUnharmed(descriptors);
        Host.AssertNoneLeft(before);
        // And can be tracked again.
        using var again = process.Track();
        process.Do("w 7");
        Assert.Equal([7L], Pages(again.GetDirtyBitmap()));
    }

    /// <summary>A read stops no thread: one that waits in a call stays there.</summary>
    [TrackingFact]
    public void ReadingDoesNotTouchTheProcess()
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track();
        process.Do("w 5");
        Host.Until(() => process.State == 'S');
        var switches = (process.Status("voluntary_ctxt_switches"), process.Status("nonvoluntary_ctxt_switches"));
        for (var i = 0; i < 50; i++) Assert.Equal(i < 2 ? 1 : 0, tracker.GetDirtyBitmap(clear: i > 0).DirtyCount);
        Assert.Equal(switches, (process.Status("voluntary_ctxt_switches"), process.Status("nonvoluntary_ctxt_switches")));
    }

    [TrackingFact]
    public void ARangeInsideAMappingIsTracked()
    {
        using var process = Start("anon", 64);
        using var low = ProcessDirtyTracker.Start(process.Id, process.Address + (8 * process.PageSize), 4 * process.PageSize);
        // Another one beside it has a userfaultfd of its own.
        using var high = ProcessDirtyTracker.Start(process.Id, process.Address + (12 * process.PageSize), 4 * process.PageSize);
        process.Do("w 7 8 11 12 15 16");
        Assert.Equal([0L, 3], Pages(low.GetDirtyBitmap()));
        Assert.Equal([0L, 3], Pages(high.GetDirtyBitmap()));
        Assert.Equal(process.Address + (8 * process.PageSize), low.GetDirtyBitmap().StartAddress);
    }

    [TrackingFact]
    public void AProcessThatEndsIsTold()
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track();
        process.Do("w 5");
        process.Kill();
        Assert.Equal(GuestMemoryError.ProcessEnded, Failure(() => tracker.GetDirtyBitmap(clear: true)));
        Assert.Equal(ProcessTrackingState.Ended, tracker.State);
        Assert.Equal(GuestMemoryError.ProcessNotFound, Failure(() => process.Track()));
    }

    [TrackingFact]
    public void AProcessThatBecomesAnotherProgramIsTold()
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track();
        process.Do("x");
        Host.Until(() => File.ReadAllText($"/proc/{process.Id}/comm") == "cat\n");
        Assert.Equal(GuestMemoryError.ProcessEnded, Failure(() => tracker.GetDirtyBitmap()));
    }

    [TrackingTheory]
    [InlineData("u 0 1")]
    [InlineData("m 0 1")]
    [InlineData("m 60 4")]
    public void MemoryThatIsNotTheSameIsTold(string command)
    {
        using var process = Start("anon", 64);
        using var tracker = process.Track();
        process.Do(command);
        Assert.Equal(GuestMemoryError.RangeNotMapped, Failure(() => tracker.GetDirtyBitmap()));
    }

    /// <summary>Whatever it is in the middle of, it is tracked, or what is wrong with it is told; nothing waits for ever, and no other process notices.</summary>
    [TrackingFact]
    public void AProcessThatIsKilledMeanwhileIsTold()
    {
        var random = new Random(1);
        var tracked = 0;
        for (var round = 0; round < 40; round++)
        {
            using var process = Start("anon", 64);
            using var start = new ManualResetEventSlim();
            var spins = random.Next(400_000);
            var killer = Task.Run(() =>
            {
                start.Wait();
                Thread.SpinWait(spins);
                process.Kill();
            });
            start.Set();
            try
            {
                using var tracker = process.Track();
                tracked++;
            }
            catch (GuestMemoryException exception)
            {
                Assert.True(exception.Error == GuestMemoryError.ProcessNotFound, exception.ToString());
            }

            killer.Wait();
        }

        output.WriteLine($"{tracked} of 40 were tracked before they were killed");
    }

    private TrackedProcess Start(string kind, int pages, params string[] options) => new(program.Path, kind, pages, [_folder["memory"], .. options]);

    /// <summary>Rounds of random writes, reads and pages given back; the page size.</summary>
    private ulong AssertExact(TrackedProcess process, int pages, bool isGivenBack)
    {
        using var tracker = process.Track();
        Assert.Equal(0, tracker.GetDirtyBitmap().DirtyCount);
        for (var round = 0; round < s_rounds; round++)
        {
            var random = new Random(round);
            var expected = new SortedSet<long>(Enumerable.Range(0, random.Next(1, Math.Min(pages, 100))).Select(_ => (long)random.Next(pages)));
            process.Do($"w {string.Join(' ', expected.Shuffle())}");
            process.Do($"r {string.Join(' ', Enumerable.Range(0, 20).Select(_ => random.Next(pages)))}");
            if (isGivenBack && round % 3 == 0)
            {
                var (first, count) = (random.Next(pages / 2), random.Next(1, pages / 2));
                process.Do(string.Create(CultureInfo.InvariantCulture, $"d {first} {count}"));
                expected.UnionWith(Enumerable.Range(first, count).Select(static page => (long)page));
            }

            if (round % 2 == 0) Assert.Equal([.. expected], Pages(tracker.GetDirtyBitmap()));
            var bitmap = tracker.GetDirtyBitmap(clear: true);
            Assert.True(expected.SequenceEqual(Pages(bitmap)), $"round {round}: {Stress.List(expected)}, not {Stress.List(Pages(bitmap))}");
            Assert.Equal((process.Address, process.Size, $"process {process.Id}"), (bitmap.StartAddress, bitmap.ByteSize, bitmap.Source));
            Assert.Equal(0, tracker.GetDirtyBitmap(clear: true).DirtyCount);
        }

        output.WriteLine($"{s_rounds} rounds; it stood still for {tracker.Standstill.TotalMicroseconds:0} us");
        return tracker.PageSize;
    }

    private static long[] Pages(DirtyBitmap bitmap)
    {
        var pages = new long[bitmap.DirtyCount];
        Assert.Equal(pages.Length, bitmap.ListPages(pages));
        return pages;
    }

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;
}
