using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>The handler on the real kernel, with this process as its VMM.</summary>
public sealed class HandlerTests : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        _folder.Dispose();
    }

    [UffdFact]
    public void EveryPageComesFromTheImage()
    {
        using var handler = Start(pages: 64);
        var memory = Memory((0, 32), (0x10000000, 32));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 32);
        TestFolder.AssertPages(memory, 0x10000000, 32, 32);
        Host.Until(() => handler.FaultCount == 64);
        Assert.Equal((64L, 64L * 4096, UffdHandlerState.Serving, 1), (handler.FaultCount, handler.ByteCount, handler.State, handler.ConnectionCount));
        Assert.True(handler.LatencyP50 > TimeSpan.Zero && handler.LatencyP50 <= handler.LatencyP99 && handler.LatencyP99 <= handler.LatencyMax);
        Assert.Null(handler.Error);
    }

    [UffdFact]
    public void WritesAreTrackedOnRestoredMemory()
    {
        using var handler = Start(pages: 16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        memory.Write(new GuestAddress(0x2fff), [1, 2]);
        Assert.Equal([new AddressRange(0x2000, 0x2000, 2)], memory.Regions[0].GetDirtyBitmap().GetRanges());
        var page = new byte[4096];
        memory.ReadExact(new GuestAddress(0x3000), page);
        var expected = new byte[4096];
        TestFolder.Fill(expected, 3);
        expected[0] = 2;
        Assert.Equal(expected, page);
    }

    [UffdFact]
    public void TwoHundredFiftySixRegionsAreHandedOver()
    {
        using var handler = Start(pages: 512);
        var memory = Memory([.. Enumerable.Range(0, 256).Select(i => ((ulong)i * 0x100000, 2))]);
        var registration = UffdRegistration.Connect(handler.SocketPath, memory);
        Assert.Equal(256, registration.Mappings.Count);
        Assert.True(UffdMappingList.ToJson(registration.Mappings).Length > 1024);
        for (var i = 0; i < 256; i++) TestFolder.AssertPages(memory, (ulong)i * 0x100000, i * 2, 2);
    }

    [UffdFact]
    public void TwoVmsAtOnceOnOneHandler()
    {
        using var handler = Start(pages: 2048);
        GuestMemoryMmap[] memories = [Memory((0, 2048)), Memory((0, 1024), (0x40000000, 1024))];
        foreach (var memory in memories) UffdRegistration.Connect(handler.SocketPath, memory);
        var failures = new Exception?[2];
        var threads = memories.Select((memory, index) => new Thread(() => failures[index] = Record.Exception(() =>
        {
            var at = 0;
            foreach (var region in memory.Regions)
            {
                TestFolder.AssertPages(memory, region.GuestAddress, at, (int)(region.Size / 4096));
                at += (int)(region.Size / 4096);
            }
        }))).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
        Assert.Equal([null, null], failures);
        Host.Until(() => handler.FaultCount == 4096);
        Assert.Equal((2, 4096L), (handler.ConnectionCount, handler.FaultCount));
    }

    [UffdFact]
    public void MemfdIsServedToo()
    {
        using var handler = Start(pages: 8);
        var memory = Memory(new MmapRegionBuilder(8 * 4096).WithMemfd().Build());
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        // MADV_REMOVE on shared memory: the page reads as zero afterwards.
        memory.Regions[0].GetMmapRegion().Discard(4096, 4096);
        var page = new byte[4096];
        memory.ReadExact(new GuestAddress(4096), page);
        Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0);
    }

    [RootFact]
    public void HugePages()
    {
        using var pool = new HugePagePoolOf(2 << 20, 6);
        if (pool.Free < 6) Assert.Fail($"only {pool.Free} of 6 huge pages could be had; free memory and try again");
        _folder.WriteImage("image", 4, 2 << 20);
        using var handler = Start();
        var memory = Memory(new MmapRegionBuilder(4 * (2 << 20)).WithHugePages(2 << 20).Build());
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4, 2 << 20);
        Host.Until(() => handler.FaultCount == 4);
        Assert.Equal((4L, 4L * (2 << 20)), (handler.FaultCount, handler.ByteCount));
        memory.Regions[0].GetMmapRegion().Discard(2 << 20, 2 << 20);
        var page = new byte[2 << 20];
        memory.ReadExact(new GuestAddress(2 << 20), page);
        Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0);
        TestFolder.AssertPages(memory, 4 << 20, 2, 2, 2 << 20);
        foreach (var region in memory.Regions) region.Dispose();
    }

    [UffdTheory]
    [InlineData(0, 16)]
    [InlineData(3, 16)]
    [InlineData(0, 512)]
    public void ALargePageOverSmallOnesThatAreThereInPart(int first, int pages)
    {
        // The mapping says large pages, the memory has 4 KiB ones, some of them present, some removed.
        _folder.WriteImage("image", pages);
        using var handler = Start();
        var memory = Memory((0, 2 * pages));
        var size = (ulong)pages * 4096;
        var start = (memory.Regions[0].GetHostAddress(default) + size - 1) & ~(size - 1);
        var offset = start - memory.Regions[0].GetHostAddress(default);
        // Where the kernel makes huge pages of its own accord (transparent_hugepage=always), the first write would bring all 512 pages.
        using (var lease = memory.Regions[0].GetMmapRegion().Lease()) _ = Mman.TryAdvise(lease.Address, lease.Length, 15 /* MADV_NOHUGEPAGE */);
        memory.Write(new GuestAddress(offset + ((ulong)first * 4096)), [42]);
        memory.Write(new GuestAddress(offset + 0xf000), [43]);
        using (var peer = new RawPeer(handler.SocketPath, memory.Regions[0]))
        {
            peer.Send([new GuestRegionUffdMapping(start, size, 0, size)]);
            var page = new byte[4096];
            for (var i = 0; i < pages; i++)
            {
                memory.ReadExact(new GuestAddress(offset + ((ulong)i * 4096)), page);
                var expected = new byte[4096];
                if (i == first) expected[0] = 42;
                else if (i == 15) expected[0] = 43;
                else TestFolder.Fill(expected, i);
                Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
            }

        }
    }

    /// <summary>100 000 faults in random order, every fifth page removed and touched again at once.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    [InlineData(UffdStrategy.Window)]
    public void RemovedPagesAreZeroUnderAStormOfFaults(UffdStrategy strategy)
    {
        const int Pages = 100_000;
        var before = Host.Resources();
        using (var handler = Start(pages: Pages, strategy))
        {
            var memory = Memory((0x100000000, Pages));
            UffdRegistration.Connect(handler.SocketPath, memory);
            var order = Enumerable.Range(0, Pages).ToArray();
            new Random(1).Shuffle(order);
            var failures = new Exception?[2];
            // Two threads, so that removals and faults really race.
            var threads = Enumerable.Range(0, 2).Select(half => new Thread(() => failures[half] = Record.Exception(() =>
            {
                var page = new byte[4096];
                var expected = new byte[4096];
                for (var i = half; i < Pages; i += 2)
                {
                    var number = order[i];
                    var address = new GuestAddress(0x100000000 + ((ulong)number * 4096));
                    memory.ReadExact(address, page);
                    TestFolder.Fill(expected, number);
                    Assert.True(expected.AsSpan().SequenceEqual(page), $"page {number}");
                    if (number % 5 != 0) continue;
                    memory.Regions[0].GetMmapRegion().Discard((ulong)number * 4096, 4096);
                    memory.ReadExact(address, page);
                    Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0, $"removed page {number}");
                }
            }))).ToArray();
            foreach (var thread in threads) thread.Start();
            foreach (var thread in threads) Assert.True(thread.Join(TimeSpan.FromMinutes(3)), $"hung; handler: {handler.State}, {handler.FaultCount} faults, {handler.Error}");
            Assert.Equal([null, null], failures);
            // The last answer wakes its reader before the handler has counted it.
            var faults = strategy == UffdStrategy.OnDemand ? Pages + (Pages / 5) : Pages / 5;
            Host.Until(() => handler.FaultCount >= faults);
            Assert.True(handler.FaultCount >= faults);
            if (strategy == UffdStrategy.OnDemand) Assert.Equal((long)Pages * 4096, handler.ByteCount);
            else Assert.InRange(handler.ByteCount, (long)Pages * 4 / 5 * 4096, (long)Pages * 4096);
            Assert.Null(handler.Error);
            foreach (var region in memory.Regions) region.Dispose();
        }

        Host.AssertNoneLeft(before);
    }

    [UffdFact]
    public void ATruncatedImagePoisonsThePageAndTheHandlerLives()
    {
        using var handler = Start(pages: 64);
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        Assert.Equal(0, Compiler.Run("truncate", "-s", "131072", _folder["image"]).Code);
        var error = Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(40 * 4096), new byte[8]));
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        Host.Until(() => handler.Error is not null);
        Assert.Contains("truncated", handler.Error, StringComparison.Ordinal);
        TestFolder.AssertPages(memory, 8 * 4096, 8, 8);
        Assert.Equal(UffdHandlerState.Serving, handler.State);
    }

    [UffdFact]
    public void ARegionThatIsServedStaysUnlessForced()
    {
        using var handler = Start(pages: 4);
        var memory = Memory((0, 2), (0x10000, 2));
        UffdRegistration.Connect(handler.SocketPath, memory);
        Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => memory.Regions[0].GetMmapRegion().Release(force: false)).Error);
        TestFolder.AssertPages(memory, 0, 0, 2);
        Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => UffdRegistration.Connect(handler.SocketPath, memory)).Error);
        memory.Regions[0].Dispose();
        Assert.True(memory.Regions[0].IsDisposed);
        // The other region of the same VM is served on.
        TestFolder.AssertPages(memory, 0x10000, 2, 2);
        handler.Stop();
        Assert.Equal(1, handler.AbandonedCount);
        memory.Regions[1].GetMmapRegion().Release(force: false);
    }

    [UffdFact]
    public void AReaderThatWaitsIsNotGivenZerosWhenTheRegionGoes()
    {
        var path = _folder["silent.sock"];
        using var silent = new System.Net.Sockets.Socket(System.Net.Sockets.AddressFamily.Unix, System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Unspecified);
        silent.Bind(new System.Net.Sockets.UnixDomainSocketEndPoint(path));
        silent.Listen();
        var memory = Memory((0, 4));
        UffdRegistration.Connect(path, memory);
        using var cancellation = new CancellationTokenSource();
        var buffer = new byte[16];
        buffer.AsSpan().Fill(0xEE);
        cancellation.CancelAfter(200);
        Assert.Throws<OperationCanceledException>(() => memory.ReadExact(new GuestAddress(0x1000), buffer, cancellation.Token));
        Assert.Equal(1, Host.Threads("guest-memory-ac"));
        memory.Regions[0].Dispose();
        // The abandoned reader ends with an error, and so does not touch its buffer.
        Host.Until(() => Host.Threads("guest-memory-ac") == 0);
        Assert.Equal(0, Host.Threads("guest-memory-ac"));
        Assert.All(buffer, value => Assert.Equal(0xEE, value));
    }

    [UffdFact]
    public void AHandlerThatHungUpIsAnErrorAndNotAWaitForEver()
    {
        using var handler = Start(pages: 4);
        var tooLarge = Memory((0, 8));
        UffdRegistration.Connect(handler.SocketPath, tooLarge);
        var error = Assert.Throws<GuestMemoryException>(() => tooLarge.ReadExact(new GuestAddress(0), new byte[8].AsMemory(), CancellationToken.None));
        Assert.Equal(GuestMemoryError.HandlerGone, error.Error);
        Assert.Contains("image that is", handler.Error, StringComparison.Ordinal);

        // What has come already can still be read.
        var memory = Memory((0, 4));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 2);
        handler.Stop();
        memory.ReadExact(new GuestAddress(0), new byte[8192].AsMemory(), CancellationToken.None);
        error = Assert.Throws<GuestMemoryException>(() => memory.WriteExact(new GuestAddress(0), new byte[12288].AsMemory(), CancellationToken.None));
        Assert.Equal(GuestMemoryError.HandlerGone, error.Error);
    }

    [CompilerFact]
    public void TheEndOfTheVmmEndsItsConnection()
    {
        using var handler = Start(pages: 256);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        var before = Host.Resources();
        using var process = Process.Start(new ProcessStartInfo(client, [handler.SocketPath, "1", "--image", _folder["image"], "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
        Assert.Contains("\"bad\":0", process.StandardOutput.ReadLine(), StringComparison.Ordinal);
        Host.Until(() => handler.FaultCount == 256);
        Assert.Equal((1, 256L), (handler.ConnectionCount, handler.FaultCount));
        process.Kill();
        process.WaitForExit();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Equal((UffdHandlerState.Listening, 256L), (handler.State, handler.FaultCount));
        Assert.Null(handler.Error);
        process.Dispose();
        Host.AssertNoneLeft(before);
    }

    [UffdFact]
    public void AVmThatEndsJustBeforeTheHandlerIsNotAbandoned()
    {
        for (var round = 0; round < 50; round++)
        {
            using var handler = Start(pages: 4);
            var memory = Memory((0, 4));
            UffdRegistration.Connect(handler.SocketPath, memory);
            TestFolder.AssertPages(memory, 0, 0, 4);
            memory.Regions[0].Dispose();
            handler.Stop();
            Assert.Equal(0, handler.AbandonedCount);
        }
    }

    [UffdFact]
    public void StopEndsEverythingAndTakesTheSocketAway()
    {
        var before = Host.Resources();
        for (var round = 0; round < 50; round++)
        {
            var handler = Start(pages: 4);
            handler.Stop();
            Assert.Equal(UffdHandlerState.Stopped, handler.State);
            Assert.False(File.Exists(handler.SocketPath));
            handler.Dispose();
        }

        Host.AssertNoneLeft(before);
    }

    private UffdHandler Start(int pages = 0, UffdStrategy strategy = UffdStrategy.OnDemand)
    {
        if (pages > 0) _folder.WriteImage("image", pages);
        return UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, SourceTimeout = TimeSpan.FromMilliseconds(200) });
    }

    private GuestMemoryMmap Memory(params (ulong Address, int Pages)[] layout) =>
        Space(layout.Select(part => (new MmapRegionBuilder((ulong)part.Pages * 4096).WithDirtyTracking().Build(), part.Address)));

    private GuestMemoryMmap Memory(MmapRegion mapping) => Space([(mapping, 0UL)]);

    private GuestMemoryMmap Space(IEnumerable<(MmapRegion Mapping, ulong Address)> parts)
    {
        var regions = parts.Select(part => new GuestRegionMmap(part.Mapping, new GuestAddress(part.Address))).ToArray();
        _regions.AddRange(regions);
        return GuestMemoryMmap.FromRegions(regions);
    }
}
