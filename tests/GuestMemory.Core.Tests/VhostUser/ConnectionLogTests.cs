using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>vhost-user-log.md, sections 3.3 to 3.8: the dirty log of a front end that migrates, in its own memfd.</summary>
public sealed class ConnectionLogTests
{
    [Fact]
    public void WritesAreMarkedInTheLogWhileTheFeatureIsOn()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x20);
        var memory = front.Connection.Memory;
        memory.WriteExact(0, "before"u8);
        Assert.Equal("", Marks(log));
        front.SetLogging(true);
        memory.WriteExact(0x3ffe, "12345"u8);
        Assert.Equal("3 4", Marks(log));
        front.SetLogging(false);
        memory.WriteExact(0x8000, "after"u8);
        Assert.Equal("3 4", Marks(log));
    }

    [Fact]
    public void TheFeatureMayComeBeforeTheLog()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.SetLogging(true);
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x1000);
        front.Connection.Memory.WriteExact(0xff000, "x"u8);
        Assert.Equal("255", Marks(log));
    }

    [Fact]
    public void ALogIsReplacedWhileItIsMarked()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var first = Memfd(0x1000);
        using var second = Memfd(0x2000);
        front.SetLogging(true);
        front.SetLog(first, 0x1000);
        var slice = front.Connection.Memory.GetSlice(0, Size);
        slice.WriteExact(0x1000, "1"u8);
        front.SetLog(second, 0x1000, 0x1000);
        slice.WriteExact(0x2000, "2"u8);
        Assert.Equal(("1", "32770"), (Marks(first), Marks(second)));
    }

    [Fact]
    public void RegionsThatComeLaterAreLoggedToo()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x100);
        front.SetLogging(true);
        using var file = Memfd();
        front.Accepted(VhostUserRequest.AddMemReg, Single(Region(0x400000)), file);
        front.Connection.Memory.WriteExact(0x402000, "later"u8);
        Assert.Equal("1026", Marks(log));
        // What the log does not reach to is refused: its writes would be lost.
        front.Refused(GuestMemoryError.InvalidLog, VhostUserRequest.AddMemReg, Single(Region(0x800000)), file);
        Assert.Equal(2, front.Connection.Memory.Regions.Count);
        front.Accepted(VhostUserRequest.SetMemTable, Table(Region(0x200000)), file);
        front.Connection.Memory.WriteExact(0x200000, "table"u8);
        Assert.Equal("512 1026", Marks(log));
    }

    /// <summary>What the own bitmap of the memory has is taken without the front end losing it, and the other way round.</summary>
    [Fact]
    public void AnOwnBitmapIsKeptApartFromTheLog()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        var region = front.Connection.Memory.Regions[0];
        GuestMemoryRegion.SetTrackers([region], static region => AtomicBitmap.WithLength(region.Size), keepDirty: false);
        front.Connection.Memory.WriteExact(0x1000, "1"u8);
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x1000);
        front.SetLogging(true);
        front.Connection.Memory.WriteExact(0x3000, "3"u8);
        Assert.Equal(("1 3", "3"), (Taken(region), Marks(log)));
        front.Connection.Memory.WriteExact(0x5000, "5"u8);
        using var next = Memfd(0x1000);
        front.SetLog(next, 0x1000);
        front.Connection.Memory.WriteExact(0x7000, "7"u8);
        Assert.Equal(("5 7", "3 5", "7"), (Taken(region), Marks(log), Marks(next)));
        // The user's bitmap is replaced, with what it had, and the log knows nothing of it.
        front.Connection.Memory.WriteExact(0x8000, "8"u8);
        GuestMemoryRegion.SetTrackers([region], static region => AtomicBitmap.WithLength(region.Size), keepDirty: true);
        front.Connection.Memory.WriteExact(0x9000, "9"u8);
        Assert.Equal(("8 9", "7 8 9", true, null), (Taken(region), Marks(next), region.DirtyTracking, region.DirtyLog));
        front.SetLogging(false);
        front.Connection.Memory.WriteExact(0xb000, "b"u8);
        Assert.Equal(("11", "7 8 9"), (Taken(region), Marks(next)));
        // As it is for one that marks in a log of its own.
        using var own = MmapLogReg.FromMemfd(0x1000);
        front.SetLogging(true);
        GuestMemoryRegion.SetTrackers([region], region => new AtomicBitmapMmap(region.GuestAddress, region.Size, own), keepDirty: false);
        front.Connection.Memory.WriteExact(0xc000, "c"u8);
        Assert.Equal((own.Path, "12", "7 8 9 12"), (region.DirtyLog, Taken(region), Marks(next)));
        GuestMemoryRegion.SetTrackers([region], static _ => null, keepDirty: false);
        front.Connection.Memory.WriteExact(0xd000, "d"u8);
        Assert.Equal((false, "7 8 9 12 13"), (region.DirtyTracking, Marks(next)));
    }

    /// <summary>Without a bitmap of its own the memory has only marks that are the front end's.</summary>
    [Fact]
    public void NobodyElseTakesTheMarksOfTheLog()
    {
        using var folder = new TestFolder();
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        var region = front.Connection.Memory.Regions[0];
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x1000);
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => region.GetDirtyBitmap()).Error);
        front.SetLogging(true);
        front.Connection.Memory.WriteExact(0x3000, "3"u8);
        Assert.Equal((1, false), (region.GetDirtyBitmap().DirtyCount, region.DirtyTracking));
        Assert.All(new Action[]
        {
            () => region.GetDirtyBitmap(clear: true),
            () => region.RequireTracker().Reset(),
            () => RawImage.WriteDirty(front.Connection.Memory, folder["diff"], force: false),
        }, static take => Assert.Equal(GuestMemoryError.LogOfFrontEnd, Assert.Throws<GuestMemoryException>(take).Error));
        Assert.Equal(("3", false), (Marks(log), File.Exists(folder["diff"])));
        front.SetLogging(false);
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => region.GetDirtyBitmap(clear: true)).Error);
    }

    [Theory]
    [InlineData(0x1f, 0)]
    [InlineData(0x2000, 0)]
    [InlineData(0x1000, 0x1000)]
    public void ALogThatIsTooShortEndsTheConnection(ulong size, ulong offset)
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var log = Memfd(0x1000);
        front.Send(VhostUserRequest.SetLogBase, Bytes(size, offset), 0, log);
        Assert.Equal(GuestMemoryError.InvalidLog, front.Failure().Error);
    }

    [Fact]
    public void ALogThatCanShrinkIsOnlyForTheTrusted()
    {
        using var folder = new TestFolder();
        File.WriteAllBytes(folder["log"], new byte[0x1000]);
        using var file = Open(folder["log"]);
        using var trusting = Negotiated(trusted: true);
        trusting.SetLog(file, 0x1000);
        using var front = Negotiated();
        front.Send(VhostUserRequest.SetLogBase, Bytes(0x1000UL, 0UL), 0, file);
        Assert.Equal(GuestMemoryError.FileNotSealed, front.Failure().Error);
    }

    [Fact]
    public void UsedRingsAreLoggedWhereTheFrontEndSays()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var log = Memfd(0x1000);
        using var told = EventFd.Create();
        front.Accepted(VhostUserRequest.SetLogFd, null, told);
        front.Start(0, 0, flags: 1, log: 0x50ffc);
        front.Start(1, 0x8000);
        front.SetLog(log, 0x20);
        front.Device.Running[0].MarkUsedRing(0, 2);
        Assert.Equal(("", false), (Marks(log), EventFd.Clear(told)));
        front.SetLogging(true);
        front.Device.Running[0].MarkUsedRing(2, 4);
        front.Device.Running[1].MarkUsedRing(2, 4);
        Assert.Equal(("80 81", true), (Marks(log), EventFd.Clear(told)));
        // As QEMU does at the end of a migration.
        front.SetLogging(false);
        front.Accepted(VhostUserRequest.SetVringAddr, Address(0, User));
        front.SetLogging(true);
        front.Device.Running[0].MarkUsedRing(0x80, 4);
        Assert.Equal("80 81", Marks(log));
        front.Refused(GuestMemoryError.InvalidLog, VhostUserRequest.SetVringAddr, Address(0, User, 1, 0x100000));
        front.Refused(GuestMemoryError.InvalidLog, VhostUserRequest.SetVringAddr, Address(0, User, 1, 0xfffffffffffffff0));
        Assert.Equal(2, front.Device.Running.Count);
    }

    /// <summary>An entry and the index are marked each for itself: here they lie in different pages of the log. The ring's own page is marked as any other.</summary>
    [Fact]
    public void WhatAQueueWritesToItsUsedRingIsLogged()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var log = Memfd(0x1000);
        front.Start(0, 0, flags: 1, log: 0x50ffc);
        front.SetLog(log, 0x20);
        front.SetLogging(true);
        new SplitQueue(front.Device.Running[0]).Push(new DescriptorChain(front.Connection.Memory, 3, [], []), 0);
        Assert.Equal("2 80 81", Marks(log));
    }

    [Fact]
    public void EachMarkIsInOneOfTheLogs()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.SetLogging(true);
        var memory = front.Connection.Memory;
        var done = false;
        var written = new bool[Size / 4096];
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x1000);
        var writer = new Thread(() =>
        {
            var random = new Random(14);
            while (!Volatile.Read(ref done))
            {
                var page = random.Next(written.Length);
                memory.WriteObject((ulong)page * 4096, 1UL);
                written[page] = true;
            }
        });
        writer.Start();
        var seen = new HashSet<string>(Marks(log).Split(' '), StringComparer.Ordinal);
        for (var i = 0; i < 50; i++)
        {
            using var next = Memfd(0x1000);
            front.SetLog(next, 0x1000);
            front.SetLog(log, 0x1000);
            seen.UnionWith(Marks(next).Split(' '));
        }

        Host.Until(() => written.Contains(true));
        Volatile.Write(ref done, true);
        writer.Join();
        seen.UnionWith(Marks(log).Split(' '));
        Assert.All(Enumerable.Range(0, written.Length).Where(page => written[page]), page => Assert.Contains(page.ToString(System.Globalization.CultureInfo.InvariantCulture), seen));
    }

    /// <summary>The pages that are marked in a region's bitmap, which are taken.</summary>
    private static string Taken(GuestMemoryRegion region) => string.Join(' ', region.GetDirtyBitmap(clear: true).GetRanges().SelectMany(static range =>
        Enumerable.Range((int)(range.Address / 4096), (int)range.PageCount)));

    /// <summary>The pages that are marked in a log.</summary>
    private static string Marks(SafeDescriptor log)
    {
        using var handle = Descriptor.Duplicate(log);
        var bytes = new byte[0x2000];
        var length = RandomAccess.Read(handle, bytes, 0);
        return string.Join(' ', Enumerable.Range(0, length * 8).Where(page => (bytes[page / 8] >> page % 8 & 1) != 0));
    }
}
