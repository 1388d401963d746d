namespace GuestMemory.Core.Tests;

/// <summary>Logs in files and memfds, and the regions that mark in them.</summary>
public sealed class DirtyLogFileTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void AFileIsMadeOfTheLengthThatIsNeeded()
    {
        var log = MmapLogReg.FromPath(_folder["log"], required: 3, create: true);
        Assert.Equal((3UL, _folder["log"], false), (log.Length, log.Path, log.IsSealed));
        Assert.Equal(3, new FileInfo(_folder["log"]).Length);
        Assert.Equal(8UL, MmapLogReg.FromPath(_folder["longer"], 4096, 8, required: 3, create: true).Length);
        Assert.Equal(4104, new FileInfo(_folder["longer"]).Length);
    }

    [Fact]
    public void AFileThatIsThereIsMappedToItsEnd()
    {
        File.WriteAllBytes(_folder["log"], new byte[5000]);
        Assert.Equal(5000UL, MmapLogReg.FromPath(_folder["log"], create: true).Length);
        Assert.Equal(904UL, MmapLogReg.FromPath(_folder["log"], 4096).Length);
        Assert.Equal(10UL, MmapLogReg.FromPath(_folder["log"], 4096, 10).Length);
    }

    [Theory]
    [InlineData(GuestMemoryError.InvalidLog, 0, -1, 5001, "byte 5001")]
    [InlineData(GuestMemoryError.InvalidLog, 4096, -1, 905, "byte 5001")]
    [InlineData(GuestMemoryError.InvalidLog, 8192, -1, 1, "byte 8193")]
    [InlineData(GuestMemoryError.InvalidLog, 0, 10, 11, "11 bytes")]
    [InlineData(GuestMemoryError.InvalidLog, 0, 5001, 1, "byte 5001")]
    [InlineData(GuestMemoryError.InvalidLog, -4096, -1, 1, "larger than any file")]
    [InlineData(GuestMemoryError.UnalignedOffset, 100, -1, 1, "4096")]
    [InlineData(GuestMemoryError.ZeroSize, 0, 0, 1, "at least one byte")]
    public void NumbersThatCannotBeAreRefused(GuestMemoryError error, long offset, int length, ulong required, string message)
    {
        File.WriteAllBytes(_folder["log"], new byte[5000]);
        var failure = Assert.Throws<GuestMemoryException>(() => MmapLogReg.FromPath(_folder["log"], (ulong)offset, length < 0 ? null : (ulong)length, required, create: true));
        Assert.Equal(error, failure.Error);
        Assert.Contains(message, failure.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(GuestMemoryError.InvalidLog, 0, 10)]
    [InlineData(GuestMemoryError.InvalidLog, -4096, 11)]
    [InlineData(GuestMemoryError.UnalignedOffset, 100, 11)]
    [InlineData(GuestMemoryError.ZeroSize, 0, 0)]
    public void NumbersThatCannotBeLeaveNoFile(GuestMemoryError error, long offset, int length)
    {
        Assert.Equal(error, Failure(() => MmapLogReg.FromPath(_folder["none"], (ulong)offset, (ulong)length, required: 11, create: true)));
        Assert.False(Path.Exists(_folder["none"]));
    }

    [Fact]
    public void WhatIsNotAFileIsRefused()
    {
        File.WriteAllBytes(_folder["file"], new byte[64]);
        File.CreateSymbolicLink(_folder["link"], _folder["file"]);
        File.CreateSymbolicLink(_folder["dangling"], _folder["none"]);
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => MmapLogReg.FromPath(_folder.Path, create: true)));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => MmapLogReg.FromPath("/dev/zero", create: true)));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => MmapLogReg.FromPath(_folder["link"], create: true)));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => MmapLogReg.FromPath(_folder["dangling"], create: true)));
        Assert.False(Path.Exists(_folder["none"]));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => DirtyBitmap.Load("/dev/zero")));
        Assert.Throws<FileNotFoundException>(() => MmapLogReg.FromPath(_folder["none"]));
    }

    [Fact]
    public void AMemfdIsOpenedByItsPath()
    {
        using var log = MmapLogReg.FromMemfd(4);
        Assert.True(log.IsSealed);
        Assert.StartsWith($"/proc/{Environment.ProcessId}/fd/", log.Path, StringComparison.Ordinal);
        var other = MmapLogReg.FromPath(log.Path);
        Assert.Equal((4UL, true), (other.Length, other.IsSealed));
        new AtomicBitmapMmap(new GuestAddress(0x3000), 0x2000, log).MarkDirty(0x1000, 1);
        Assert.Equal([new AddressRange(0x4000, 0x1000, 1)], DirtyBitmap.Load(log.Path).GetRanges());
        Assert.Equal([new AddressRange(0x4000, 0x1000, 1)], other.GetAndReset().GetRanges());
        Assert.Equal(0, other.GetAndReset().DirtyCount);
        Assert.Equal(GuestMemoryError.ZeroSize, Failure(() => MmapLogReg.FromMemfd(0)));
        Assert.Equal(GuestMemoryError.OutOfMemory, Failure(() => MmapLogReg.FromMemfd(1UL << 49)));
    }

    [Fact]
    public void ALogIsReleasedWithTheLastTrackerThatMarksInIt()
    {
        using var low = Region(0, tracked: false);
        var high = Region(0x8000, tracked: false);
        var log = MmapLogReg.FromMemfd(2);
        foreach (var region in new[] { low, high }) region.GetMmapRegion().SetTracker(In(log, region));
        var former = low.RequireTracker();
        log.Dispose();
        log.Dispose();
        high.Write(new MemoryRegionAddress(0x7000), [1]);
        Assert.Equal(1, DirtyBitmap.Load(log.Path).DirtyCount);
        low.GetMmapRegion().SetTracker(null);
        Assert.True(IsOpen(log));
        high.Dispose();
        Assert.False(IsOpen(log));

        // A late mark reaches no other memory, and nothing is read out of it.
        Assert.False(former.IsDirtyAt(0));
        former.MarkDirty(0, 0x8000);
        former.Reset();
        Assert.Equal(GuestMemoryError.LogDisposed, Failure(() => former.Snapshot()));
        Assert.Equal(GuestMemoryError.LogDisposed, Failure(() => former.GetAndReset()));
        Assert.Equal(GuestMemoryError.LogDisposed, Failure(() => log.GetAndReset()));
        Assert.Equal(GuestMemoryError.LogDisposed, Failure(() => In(log, low)));
        Assert.Equal(GuestMemoryError.LogDisposed, Failure(() => low.GetMmapRegion().SetTracker(former)));
        Assert.False(low.DirtyTracking);
    }

    [Fact]
    public void ALogThatNoRegionMarksInIsReleasedAtOnce()
    {
        var log = MmapLogReg.FromMemfd(1);
        Assert.True(IsOpen(log));
        log.Dispose();
        Assert.False(IsOpen(log));
    }

    /// <summary>Releases meet marks: a thread writes to the region all the time.</summary>
    [Fact]
    public void AHundredThousandReplacedLogsLeaveNothingBehind()
    {
        const int Rounds = 100_000;
        GC.Collect();
        GC.WaitForPendingFinalizers();
        var (logs, mappings) = (OpenLogs(), Mappings());
        using var region = Region(0, tracked: false);
        var over = false;
        Stress.RunAll(
            () =>
            {
                while (!Volatile.Read(ref over)) region.Write(new MemoryRegionAddress(0x3000), [1]);
            },
            () =>
            {
                try
                {
                    for (var round = 1; round <= Rounds; round++)
                    {
                        using (var log = MmapLogReg.FromMemfd(1)) region.GetMmapRegion().SetTracker(In(log, region));
                        if (round % 1000 != 0) continue;
                        Assert.InRange(OpenLogs(), 0, logs + 1);
                        // What is reserved waits for the collector; vm.max_map_count is 65530.
                        Assert.InRange(Mappings(), 0, mappings + 5000);
                    }
                }
                finally
                {
                    Volatile.Write(ref over, true);
                }
            });
        region.Write(new MemoryRegionAddress(0x3000), [1]);
        Assert.Equal([3L], Pages(region));
        region.GetMmapRegion().SetTracker(null);
        Assert.InRange(OpenLogs(), 0, logs);
    }

    [Fact]
    public void LogsThatAreNeverDisposedDoNotUseUpTheDescriptors()
    {
        Assert.Equal(0, ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var limit));
        var few = limit with { rlim_cur = (ulong)Directory.GetFiles("/proc/self/fd").Length + 100 };
        Assert.Equal(0, ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, few));
        try
        {
            using var region = Region(0, tracked: false);
            for (var i = 0; i < 1000; i++) region.GetMmapRegion().SetTracker(In(MmapLogReg.FromMemfd(1), region));
        }
        finally
        {
            Assert.Equal(0, ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, limit));
        }
    }

    /// <summary>Reading does not fail where the log is replaced, and released, before it is read; and no mark is lost on the way.</summary>
    [Fact]
    public void BitmapsAreReadWhileLogsAreReplaced()
    {
        using var region = Region(0, tracked: true);
        region.Write(new MemoryRegionAddress(0x3000), [1]);
        Stress.Repeat(Stress.Duration(3),
            () =>
            {
                using var log = MmapLogReg.FromMemfd(1);
                region.GetMmapRegion().SetTracker(In(log, region), keepDirty: true);
            },
            () => region.GetDirtyBitmap());
        Assert.Equal([3L], Pages(region));
    }

    private static long[] Pages(GuestRegionMmap region)
    {
        var pages = new long[8];
        return pages[..region.GetDirtyBitmap().ListPages(pages)];
    }

    private static bool IsOpen(MmapLogReg log) => new FileInfo(log.Path).LinkTarget?.Contains("dirty_log", StringComparison.Ordinal) == true;

    private static int OpenLogs() => Directory.GetFiles("/proc/self/fd").Count(static link => new FileInfo(link).LinkTarget?.Contains("dirty_log", StringComparison.Ordinal) == true);

    private static int Mappings() => File.ReadLines("/proc/self/maps").Count();

    [Fact]
    public void AllRegionsGetALogOrNone()
    {
        using var low = Region(0, tracked: true);
        using var high = Region(0x100000, tracked: false);
        var memory = GuestMemoryMmap.FromRegions([low, high]);
        memory.Write(new GuestAddress(0x2000), [1]);
        var before = low.RequireTracker();
        var small = MmapLogReg.FromMemfd(MmapLogReg.RequiredLength(new GuestAddress(low.LastAddress)));
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => GuestMemoryRegion.SetTrackers(memory.Regions, region => In(small, region), keepDirty: true)));
        Assert.Equal((before, false), (low.RequireTracker(), high.DirtyTracking));

        var log = MmapLogReg.FromMemfd(MmapLogReg.RequiredLength(new GuestAddress(memory.LastAddress)));
        GuestMemoryRegion.SetTrackers(memory.Regions, region => In(log, region), keepDirty: true);
        memory.Write(new GuestAddress(0x101fff), [1, 2]);
        Assert.Equal([new AddressRange(0x2000, 0x1000, 1), new AddressRange(0x101000, 0x2000, 2)], log.GetAndReset().GetRanges());
        GuestMemoryRegion.SetTrackers(memory.Regions, region => new AtomicBitmap(region.Size, HostPage.Size), keepDirty: false);
        Assert.Equal((0L, null), (low.GetDirtyBitmap().DirtyCount, low.DirtyLog));

        high.Dispose();
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure(() => GuestMemoryRegion.SetTrackers(memory.Regions, region => In(log, region), keepDirty: true)));
        Assert.Null(low.DirtyLog);
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure(() => high.RequireTracker()));
    }

    /// <summary>Four threads write while the trackers change: nobody takes, so all that was written is marked in the end.</summary>
    [Fact]
    public void NoMarkIsLeftBehindWhileTrackersChange()
    {
        const int Pages = 512, Writers = 4, Writes = 200;
        for (var round = 0; round < 20; round++)
        {
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithDirtyTracking(round % 2 == 0).Build(), new GuestAddress(0x7000));
            GuestMemoryRegion.SetTrackers([region], Next(0), keepDirty: true);
            var memory = GuestMemoryMmap.FromRegions([region]);
            var expected = new bool[Pages];
            var running = Writers;
            var writers = Enumerable.Range(0, Writers).Select(seed => new Thread(() =>
            {
                var random = new Random(round * Writers + seed);
                for (var i = 0; i < Writes; i++)
                {
                    var page = random.Next(Pages);
                    memory.Write(new GuestAddress(0x7000 + (ulong)page * 4096), [1]);
                    expected[page] = true;
                    Thread.SpinWait(100);
                }

                Interlocked.Decrement(ref running);
            })).ToArray();
            foreach (var thread in writers) thread.Start();
            for (var i = 0; Volatile.Read(ref running) > 0; i++) GuestMemoryRegion.SetTrackers([region], Next(i), keepDirty: true);
            foreach (var thread in writers) thread.Join();
            var dirty = region.GetDirtyBitmap();
            Assert.Equal(expected, Enumerable.Range(0, Pages).Select(page => dirty.IsDirty(page)));
        }

        static Func<GuestMemoryRegion, IDirtyTracker> Next(int i) => region => i % 3 == 0
            ? new AtomicBitmap(region.Size, HostPage.Size)
            : In(MmapLogReg.FromMemfd(MmapLogReg.RequiredLength(new GuestAddress(region.LastAddress))), region);
    }

    /// <summary>A page that the file cannot give, behind its end or in a hole on a full disk, would end the process at the first mark.</summary>
    [Fact]
    public void ALogThatCannotBeWrittenIsRefused()
    {
        var path = _folder["log"];
        using var file = File.OpenHandle(path, FileMode.CreateNew, FileAccess.ReadWrite);
        RandomAccess.SetLength(file, 8192);
        var log = MmapLogReg.FromFile(file, 0, 8192);
        _ = new AtomicBitmapMmap(new GuestAddress(0), 8192UL * 8 * 4096, log);
        RandomAccess.SetLength(file, 4096);
        _ = new AtomicBitmapMmap(new GuestAddress(0), 4096UL * 8 * 4096, log);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => new AtomicBitmapMmap(new GuestAddress(0), 8192UL * 8 * 4096, log)));
    }

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    private static AtomicBitmapMmap In(MmapLogReg log, GuestMemoryRegion region) => new(new GuestAddress(region.GuestAddress), region.Size, log);

    private static GuestRegionMmap Region(ulong address, bool tracked) =>
        new(new MmapRegionBuilder(0x8000).WithDirtyTracking(tracked).Build(), new GuestAddress(address));
}
