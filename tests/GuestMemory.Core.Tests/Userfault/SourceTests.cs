namespace GuestMemory.Core.Tests;

/// <summary>Where pages come from: sparse files, layers, chunks, memory.</summary>
public sealed partial class SourceTests : IDisposable
{
    private const int Pages = 600;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    public static TheoryData<UffdStrategy> Strategies => [UffdStrategy.OnDemand, UffdStrategy.Background, UffdStrategy.FaultAll, UffdStrategy.Window];

    [UffdTheory]
    [MemberData(nameof(Strategies))]
    public void HolesAreZerosThatAreNotRead(UffdStrategy strategy)
    {
        WriteSparse("image", page => page % 7 == 0);
        using var handler = Start(strategy);
        AssertMemory(handler, page => page % 7 == 0 ? page : -1);
        Assert.InRange(handler.ByteCount, 1, (Pages + 6) / 7 * 4096);
        if (strategy == UffdStrategy.OnDemand) Assert.Equal((Pages + 6) / 7 * 4096, handler.ByteCount);
    }

    [UffdFact]
    public void AnImageOfNothing()
    {
        using (var file = File.Create(_folder["image"])) file.SetLength(Pages * 4096);
        using var handler = Start(UffdStrategy.OnDemand);
        AssertMemory(handler, _ => -1);
        Assert.Equal(0, handler.ByteCount);
        Assert.Equal(0, Blocks(_folder["image"]));
    }

    /// <summary>Faults bring in the very pages that the filler has just chosen.</summary>
    [UffdTheory]
    [MemberData(nameof(Strategies))]
    public void AnImageOfNothingIsFilledWhileItIsTouched(UffdStrategy strategy)
    {
        const int Large = 8192;
        using (var file = File.Create(_folder["image"])) file.SetLength(Large * 4096);
        using var handler = Start(strategy);
        for (var round = 0; round < 30; round++)
        {
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Large * 4096).Build(), new GuestAddress(0));
            var memory = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(handler.SocketPath, memory);
            var touched = UffdTouch.Run(memory, new UffdTouchOptions { Pattern = (UffdTouchPattern)(round % 2), ThreadCount = 2, Seed = round });
            Assert.Equal((Large, 0), (touched.TouchCount, touched.ErrorCount));
        }

        Assert.Null(handler.Error);
        Assert.Equal(0, Blocks(_folder["image"]));
    }

    [UffdTheory]
    [MemberData(nameof(Strategies))]
    public void TheLastLayerThatHasAPageIsRight(UffdStrategy strategy)
    {
        _folder.WriteImage("image", Pages);
        WriteSparse("one", page => page % 3 == 0, plus: 10_000);
        WriteSparse("two", page => page % 5 == 0, plus: 20_000);
        using var handler = Start(strategy, "one", "two");
        AssertMemory(handler, page => page % 5 == 0 ? page + 20_000 : page % 3 == 0 ? page + 10_000 : page);
    }

    [UffdFact]
    public void ALayerOfAnotherLengthIsRefused()
    {
        _folder.WriteImage("image", 4);
        _folder.WriteImage("layer", 5);
        var before = Host.Resources();
        Assert.Equal(GuestMemoryError.BaseSizeMismatch, Assert.Throws<GuestMemoryException>(() => Start(UffdStrategy.OnDemand, "layer")).Error);
        Assert.Equal(GuestMemoryError.ImageNotFound, Assert.Throws<GuestMemoryException>(() => Start(UffdStrategy.OnDemand, "none")).Error);
        Host.AssertNoneLeft(before);
    }

    /// <summary>What Export-GuestMemory writes as a diff is a layer.</summary>
    [UffdFact]
    public void AnExportedDiffIsALayer()
    {
        _folder.WriteImage("image", Pages);
        using (var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithDirtyTracking().Build(), new GuestAddress(0)))
        {
            var memory = GuestMemoryMmap.FromRegions([region]);
            var page = new byte[4096];
            TestFolder.Fill(page, 777);
            memory.Write(new GuestAddress(11 * 4096), page);
            memory.Write(new GuestAddress(12 * 4096), new byte[4096]);
            RawImage.WriteDirty(memory, _folder["diff"], force: false);
        }

        using var handler = Start(UffdStrategy.OnDemand, "diff");
        AssertMemory(handler, page => page == 11 ? 777 : page == 12 ? -1 : page);
    }

    [Theory]
    [InlineData(ChunkCompression.Brotli)]
    [InlineData(ChunkCompression.ZLib)]
    public unsafe void WhatCannotBePackedIsStoredAsItIs(ChunkCompression compression)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(100 * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var bytes = new byte[100 * 4096];
        new Random(3).NextBytes(bytes);
        memory.Write(new GuestAddress(0), bytes);
        Assert.InRange(ChunkedImage.Write(memory, _folder["image"], overwrite: false, compression).BytesWritten, 100UL * 4096, 101UL * 4096);
        using var source = new ChunkedSource(ImageFile.Open(_folder["image"]));
        using var scratch = new PageScratch();
        for (ulong at = 0; at < 100 * 4096;)
        {
            Assert.Equal(0, source.Locate(at, (100 * 4096) - at, scratch, out var run));
            Assert.True(bytes.AsSpan((int)at, (int)run.Length).SequenceEqual(new ReadOnlySpan<byte>(run.Data, (int)run.Length)));
            at += run.Length;
        }

        Assert.Equal(GuestMemoryError.FileExists, Assert.Throws<GuestMemoryException>(() => ChunkedImage.Write(memory, _folder["image"], overwrite: false)).Error);
    }

    [UffdFact]
    public void MemoryOfThisProcessIsServed()
    {
        using var source = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var image = GuestMemoryMmap.FromRegions([source]);
        var page = new byte[4096];
        for (var i = 0; i < Pages; i++)
        {
            TestFolder.Fill(page, i + 5);
            image.Write(new GuestAddress((ulong)i * 4096), page);
        }

        using (var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = "" }, image))
        {
            Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => UffdRegistration.Connect(handler.SocketPath, image)).Error);
            Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => source.GetMmapRegion().Release(force: false)).Error);
            AssertMemory(handler, number => number + 5);
            source.Dispose();
            AssertMemory(handler, number => number + 5);
        }
    }

    /// <summary>The kernel fills nothing across the mappings of the VMM, which may be many in a region.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    public void ARegionOfManyMappingsIsFilled(UffdStrategy strategy)
    {
        _folder.WriteImage("image", Pages);
        using var handler = Start(strategy);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using (var lease = region.GetMmapRegion().Lease())
        {
            foreach (var page in new[] { 1, 77, 300, 500 }) Assert.Equal(0, Mman.TryAdvise(lease.Address + (page * 4096), 40 * 4096, Mman.MADV_DONTDUMP));
        }

        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([region]));
        Host.Until(() => handler.GetFigures().IsRestored);
        Assert.Equal((Pages * 4096L, 0L), (handler.GetFigures().FillByteCount, handler.GetFigures().FaultCount));
        Assert.True(handler.GetFigures().IsRestored);
    }

    /// <summary>A huge page that was there before is not missing, in none of its parts.</summary>
    [RootFact]
    public void AHugePageThatIsThereIsNotMissing()
    {
        const int Huge = 2 << 20;
        using var pool = new HugePagePoolOf(Huge, 4);
        if (pool.Free < 4) Assert.Fail($"only {pool.Free} of 4 huge pages could be had; free memory and try again");
        _folder.WriteImage("image", 1024);
        using var handler = Start(UffdStrategy.Background);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(2 * Huge).WithHugePages(Huge).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.Write(new GuestAddress(0), [1]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Host.Until(() => handler.GetFigures().IsRestored);
        Assert.Equal((true, (long)Huge), (handler.GetFigures().IsRestored, handler.GetFigures().FillByteCount));
    }

    /// <summary>A huge page that is zero in part, lies in several layers, or in several chunks, is put together.</summary>
    [RootFact]
    public void HugePagesOfPieces()
    {
        const int Huge = 2 << 20;
        using var pool = new HugePagePoolOf(Huge, 4);
        if (pool.Free < 4) Assert.Fail($"only {pool.Free} of 4 huge pages could be had; free memory and try again");
        using (var file = File.Create(_folder["image"])) file.SetLength(2 * Huge);
        WriteSparse("image", page => page % 100 == 3, count: 1024, append: true);
        WriteSparse("layer", page => page is > 300 and < 310, plus: 5000, count: 1024);
        foreach (var strategy in new[] { UffdStrategy.OnDemand, UffdStrategy.Background })
        {
            using var handler = Start(strategy, "layer");
            using var region = new GuestRegionMmap(new MmapRegionBuilder(2 * Huge).WithHugePages(Huge).Build(), new GuestAddress(0));
            AssertRegion(handler, region, 1024, page => page is > 300 and < 310 ? page + 5000 : page % 100 == 3 ? page : -1);
        }
    }

    private static int ChunkedPage(int page) => page is >= 32 and < 48 or > 500 ? -1 : page;

    private static long Blocks(string path) => FileStatus.TryGet(path, out var status) == 0 ? (long)status.stx_blocks : -1;

    private void WriteChunked(ChunkCompression compression = ChunkCompression.Brotli)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var page = new byte[4096];
        for (var i = 0; i < Pages; i++)
        {
            if (ChunkedPage(i) < 0) continue;
            TestFolder.Fill(page, i);
            memory.Write(new GuestAddress((ulong)i * 4096), page);
        }

        var info = ChunkedImage.Write(memory, _folder["image"], overwrite: true, compression);
        Assert.Equal((ImageFormat.Chunked, (ulong)Pages * 4096, (ulong)new FileInfo(_folder["image"]).Length), (info.Format, info.Size, info.BytesWritten));
        Assert.InRange(info.BytesWritten, 1UL, (ulong)Pages * 4096 / 4);
    }

    private void WriteSparse(string name, Predicate<int> isData, int plus = 0, int count = Pages, bool append = false)
    {
        using var file = append ? File.OpenWrite(_folder[name]) : File.Create(_folder[name]);
        file.SetLength(count * 4096);
        var page = new byte[4096];
        for (var i = 0; i < count; i++)
        {
            if (!isData(i)) continue;
            TestFolder.Fill(page, i + plus);
            file.Position = i * 4096;
            file.Write(page);
        }
    }

    private UffdHandler Start(UffdStrategy strategy, params string[] layers) => UffdHandler.Start(new UffdHandlerOptions
    {
        SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, LayerPaths = [.. layers.Select(layer => _folder[layer])],
        SourceTimeout = TimeSpan.FromMilliseconds(200),
    });

    private static void AssertMemory(UffdHandler handler, Func<int, int> number)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        AssertRegion(handler, region, Pages, number);
    }

    private static void AssertRegion(UffdHandler handler, GuestRegionMmap region, int pages, Func<int, int> number)
    {
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var page = new byte[4096];
        var expected = new byte[4096];
        var order = Enumerable.Range(0, pages).ToArray();
        new Random(1).Shuffle(order);
        foreach (var i in order)
        {
            memory.ReadExact(new GuestAddress((ulong)i * 4096), page);
            if (number(i) < 0) expected.AsSpan().Clear();
            else TestFolder.Fill(expected, number(i));
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
        }

        Assert.Null(handler.Error);
    }
}
