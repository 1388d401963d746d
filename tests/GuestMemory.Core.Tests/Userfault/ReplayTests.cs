namespace GuestMemory.Core.Tests;

/// <summary>Recording what a run touches, and bringing that in first.</summary>
public sealed class ReplayTests : IDisposable
{
    private const int Pages = 8192;
    private readonly TestFolder _folder = new();

    public ReplayTests() => _folder.WriteImage("image", Pages);

    public void Dispose() => _folder.Dispose();

    [UffdTheory]
    [InlineData(UffdStrategy.Replay)]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    public void WhatWasRecordedComesFirst(UffdStrategy strategy)
    {
        var touched = Enumerable.Range(0, Pages).ToArray();
        new Random(7).Shuffle(touched);
        touched = touched[..2000];
        using (var recorder = Start(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.OnDemand, RecordPath = _folder["touches"] }))
        {
            Touch(recorder, touched, twice: true);
            // Another VM adds what it alone touches.
            Touch(recorder, [touched[0], touched[1]], twice: false);
        }

        var recorded = TouchRecord.Load(_folder["touches"], Pages * 4096);
        Assert.Equal(touched.Select(page => (uint)page), recorded);

        using var handler = Start(new() { SocketPath = "", MemoryPath = "", Strategy = strategy, ReplayPath = _folder["touches"] });
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        if (strategy == UffdStrategy.Replay)
        {
            Host.Until(() => handler.GetFigures().FillByteCount == touched.Length * 4096);
            AssertPages(memory, touched);
            Assert.Equal(0, handler.FaultCount);
            AssertPages(memory, [.. Enumerable.Range(0, Pages)]);
            Host.Until(() => handler.FaultCount >= Pages - touched.Length);
            Assert.Equal(Pages - touched.Length, handler.FaultCount);
            return;
        }

        AssertPages(memory, touched);
        Assert.Null(handler.Error);
        // Most come with their slice; those that take too long, by themselves.
        Assert.InRange(handler.FaultCount, 0, touched.Length / 2);
        AssertPages(memory, [.. Enumerable.Range(0, Pages)]);
    }

    /// <summary>What the filler brings is no touch, and a page that came before its touch is not in the record.</summary>
    [UffdFact]
    public void ARecordBesideTheFillerHasTheFaultsAlone()
    {
        var touched = Enumerable.Range(Pages / 2, Pages / 2).ToArray();
        new Random(7).Shuffle(touched);
        touched = touched[..200];
        // The filler comes to the second half in minutes.
        using (var handler = Start(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.Background, RecordPath = _folder["touches"], FillRate = 64 << 10 }))
        {
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
            var memory = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(handler.SocketPath, memory);
            AssertPages(memory, touched);
            Host.Until(() => handler.GetFigures().FillByteCount >= 8 * 4096);
            AssertPages(memory, [0, 1]);
        }

        Assert.Equal(touched.Select(page => (uint)page), TouchRecord.Load(_folder["touches"], Pages * 4096));
    }

    [UffdFact]
    public void RegionsThatCutARunOrLeaveAPartOut()
    {
        TouchRecord.Save(_folder["touches"], Pages * 4096, [.. Enumerable.Range(0, Pages).Select(page => (uint)page)]);
        using var handler = Start(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.Replay, ReplayPath = _folder["touches"] });
        using var region = new GuestRegionMmap(new MmapRegionBuilder(300 * 4096).Build(), new GuestAddress(0));
        using var peer = new RawPeer(handler.SocketPath, region);
        peer.Send([
            new GuestRegionUffdMapping(region.HostAddress, 100 * 4096, 4000 * 4096, 4096),
            new GuestRegionUffdMapping(region.HostAddress + (100 * 4096), 200 * 4096, 10 * 4096, 4096)]);
        var memory = GuestMemoryMmap.FromRegions([region]);
        var page = new byte[4096];
        var expected = new byte[4096];
        for (var i = 0; i < 300; i++)
        {
            memory.ReadExact(new GuestAddress((ulong)i * 4096), page);
            TestFolder.Fill(expected, i < 100 ? 4000 + i : 10 + i - 100);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
        }
    }

    [Fact]
    public void RunsAreJoinedInsideTheirSlices()
    {
        var pages = Enumerable.Range(0, 1000).Select(i => (uint)(999 - i)).ToArray();
        var plan = new UffdReplay(pages, 1000 * 4096);
        Assert.Equal([new PageRun(488, 1000), new PageRun(0, 488)], plan.Runs);
        Assert.Equal([1, 2], plan.SliceEnds);
        Assert.Empty(new UffdReplay([], 4096).SliceEnds);
    }

    /// <summary>Where others may write to the folder of a record, they could foretell a name that the number of a process makes.</summary>
    [Fact]
    public void ALinkBesideARecordIsNotFollowed()
    {
        File.WriteAllText(_folder["other"], "another's");
        File.CreateSymbolicLink(_folder[$"touches.{Environment.ProcessId}.part"], _folder["other"]);
        TouchRecord.Save(_folder["touches"], 8 * 4096, [7, 1]);
        Assert.Equal("another's", File.ReadAllText(_folder["other"]));
        Assert.Equal([7u, 1u], TouchRecord.Load(_folder["touches"], 8 * 4096));
        Assert.Null(new FileInfo(_folder["touches"]).LinkTarget);
    }

    [Fact]
    public void RecordsThatCannotBeReplayed()
    {
        var path = _folder["touches"];
        TouchRecord.Save(path, 8 * 4096, [7, 1]);
        Assert.Equal([7u, 1u], TouchRecord.Load(path, 8 * 4096));
        var good = File.ReadAllBytes(path);
        GuestMemoryError Of(int at, byte value, int length = 40)
        {
            var bad = good[..length];
            if (at >= 0) bad[at] = value;
            File.WriteAllBytes(path, bad);
            return Assert.ThrowsAny<GuestMemoryException>(() => TouchRecord.Load(path, 8 * 4096)).Error;
        }

        Assert.Equal(GuestMemoryError.InvalidRecord, Of(0, (byte)'X'));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(8, 1));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(16, 1));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(24, 1));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(31, 0x80));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(32, 8));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(32, 1));
        for (var length = 0; length < 40; length++) Assert.Equal(GuestMemoryError.InvalidRecord, Of(-1, 0, length));
        Assert.Equal(GuestMemoryError.RecordNotFound, Assert.ThrowsAny<GuestMemoryException>(() => TouchRecord.Load(_folder["none"], 1)).Error);
    }

    [Theory]
    [InlineData(false, new uint[] { 2, 7, 1, 0, 3 })]
    [InlineData(true, new uint[] { 7, 1 })]
    public void RecordsAreMergedInTheOrderOfTheEarliestTouch(bool commonOnly, uint[] expected)
    {
        const ulong length = (8 * 4096) - 100;
        TouchRecord.Save(_folder["a"], length, [7, 1, 0]);
        TouchRecord.Save(_folder["b"], length, [2, 7, 3, 1]);
        string[] all = [_folder["a"], _folder["b"], _folder["a"]];
        var merged = UffdRecord.Merge(all, _folder["merged"], commonOnly);
        Assert.Equal(expected, TouchRecord.Load(_folder["merged"], length));
        // The last page is shorter.
        Assert.Equal(new UffdRecord(_folder["merged"], length, expected.Length, ((ulong)expected.Length * 4096) - 100, HasPages: false), merged);
        Assert.Equal(GuestMemoryError.FileExists, Assert.Throws<GuestMemoryException>(() => UffdRecord.Merge(all, _folder["a"])).Error);
        UffdRecord.Merge(all, _folder["a"], commonOnly, force: true);
        Assert.Equal(expected, TouchRecord.Load(_folder["a"], length));
    }

    /// <summary>A record with pages is read in place of the image: the pages that stand in it come from there, in whatever order VMs touch them.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.Replay)]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    public void PagesOfARecordComeFromTheRecord(UffdStrategy strategy)
    {
        _folder.WriteImage("small", 700);
        using (var layer = File.Create(_folder["layer"]))
        {
            layer.SetLength(700 * 4096);
            layer.Position = 5 * 4096;
            layer.Write(File.ReadAllBytes(_folder["image"]).AsSpan(6000 * 4096, 4096));
        }

        uint[] set = [699, 300, 301, 302, 5, 4, 0, .. Enumerable.Range(310, 200).Select(static page => (uint)page)];
        TouchRecord.Save(_folder["touches"], 700 * 4096, set);
        var record = UffdRecord.MergeWithPages([_folder["touches"]], _folder["set"], _folder["small"], [_folder["layer"]]);
        Assert.Equal(new UffdRecord(_folder["set"], 700 * 4096, set.Length, (ulong)set.Length * 4096, HasPages: true), record);
        // Without the layer it is no record of the image.
        Assert.Equal(GuestMemoryError.InvalidRecord, Assert.Throws<GuestMemoryException>(() => UffdHandler.Start(Options([]))).Error);

        // What nobody does: it tells that the page comes from there.
        var bytes = File.ReadAllBytes(_folder["set"]);
        var at = bytes.AsSpan().IndexOf(File.ReadAllBytes(_folder["small"]).AsSpan(301 * 4096, 4096));
        TestFolder.Fill(bytes.AsSpan(at, 4096), 5000);
        File.WriteAllBytes(_folder["set"], bytes);

        using var handler = UffdHandler.Start(Options([_folder["layer"]]));
        using var region = new GuestRegionMmap(new MmapRegionBuilder(700 * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        for (var page = 699; page >= 0; page--)
            TestFolder.AssertPages(memory, (ulong)page * 4096, page switch { 301 => 5000, 5 => 6000, _ => page }, 1);
        Assert.Null(handler.Error);

        UffdHandlerOptions Options(string[] layers) => new() { SocketPath = _folder["socket"], MemoryPath = _folder["small"], LayerPaths = layers, Strategy = strategy, ReplayPath = _folder["set"] };
    }

    [Fact]
    public void ARecordWithPagesThatIsNotOfTheImageIsRefused()
    {
        _folder.WriteImage("other", 8);
        TouchRecord.Save(_folder["touches"], 8 * 4096, [7, 1]);
        UffdRecord.MergeWithPages([_folder["touches"]], _folder["set"], _folder["other"]);
        Assert.Equal([1u, 7u], TouchRecord.Load(_folder["set"], 8 * 4096));
        var good = File.ReadAllBytes(_folder["set"]);
        Assert.Equal(3 * 4096, good.Length);
        var written = File.GetLastWriteTimeUtc(_folder["set"]);
        string Open(ReadOnlySpan<byte> bytes)
        {
            File.WriteAllBytes(_folder["set"], bytes);
            using var files = new Files(ImageFile.OpenAll(_folder["other"], [], _folder["set"]));
            var failure = Assert.Throws<GuestMemoryException>(() => ImageFile.OpenSource(files.All));
            Assert.Equal(GuestMemoryError.InvalidRecord, failure.Error);
            return failure.Message;
        }

        for (var length = 8; length < good.Length; length += length < 48 ? 1 : 700) Open(good.AsSpan(0, length));
        foreach (var at in new[] { 8, 16, 20, 24, 31, 32, 36 })
        {
            var bad = good.ToArray();
            bad[at] ^= 0x80;
            Open(bad);
        }

        File.SetLastWriteTimeUtc(_folder["other"], DateTime.UtcNow.AddHours(1));
        Assert.Contains("was written after it", Open(good), StringComparison.Ordinal);
        File.SetLastWriteTimeUtc(_folder["other"], written);
        File.WriteAllBytes(_folder["set"], good);
        using (ImageFile.OpenSource(ImageFile.OpenAll(_folder["other"], [], _folder["set"])))
        {
        }

        // Of an image that is longer, and where there is no image.
        File.WriteAllText(_folder["kept"], "kept");
        Assert.Equal(GuestMemoryError.InvalidRecord, Assert.Throws<GuestMemoryException>(() => UffdRecord.MergeWithPages([_folder["touches"]], _folder["kept"], _folder["image"], force: true)).Error);
        Assert.Equal(GuestMemoryError.ImageNotFound, Assert.Throws<GuestMemoryException>(() => UffdRecord.MergeWithPages([_folder["touches"]], _folder["kept"], _folder["none"], force: true)).Error);
        using var given = new CancellationTokenSource();
        given.Cancel();
        Assert.Throws<OperationCanceledException>(() => UffdRecord.MergeWithPages([_folder["touches"]], _folder["kept"], _folder["other"], force: true, cancellation: given.Token));
        Assert.Equal("kept", File.ReadAllText(_folder["kept"]));
    }

    private sealed record Files(IReadOnlyList<ImageFile> All) : IDisposable
    {
        public void Dispose()
        {
            foreach (var file in All) file.Dispose();
        }
    }

    [Fact]
    public void RecordsThatCannotBeMergedLeaveTheFileAsItIs()
    {
        TouchRecord.Save(_folder["a"], 8 * 4096, [7, 1]);
        TouchRecord.Save(_folder["other"], 9 * 4096, [7, 1]);
        File.WriteAllText(_folder["bad"], "nonsense");
        File.WriteAllText(_folder["merged"], "kept");
        foreach (var (second, error) in new[] { ("other", GuestMemoryError.InvalidRecord), ("bad", GuestMemoryError.InvalidRecord), ("none", GuestMemoryError.RecordNotFound) })
            Assert.Equal(error, Assert.Throws<GuestMemoryException>(() => UffdRecord.Merge([_folder["a"], _folder[second]], _folder["merged"], force: true)).Error);
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => UffdRecord.Merge([], _folder["merged"], force: true)).Error);
        Assert.Equal("kept", File.ReadAllText(_folder["merged"]));
    }

    [Fact]
    public void OptionsThatContradictEachOther()
    {
        GuestMemoryError Of(UffdHandlerOptions options) => Assert.ThrowsAny<GuestMemoryException>(() => Start(options).Dispose()).Error;
        Assert.Equal(GuestMemoryError.ValueNotSupported, Of(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.Replay }));
        foreach (var strategy in new[] { UffdStrategy.Window, UffdStrategy.FaultAll, UffdStrategy.Replay })
            Assert.Equal(GuestMemoryError.ValueNotSupported, Of(new() { SocketPath = "", MemoryPath = "", Strategy = strategy, RecordPath = _folder["r"], ReplayPath = strategy == UffdStrategy.Replay ? _folder["r"] : null }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Of(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.OnDemand, ReplayPath = _folder["r"] }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Of(new() { SocketPath = "", MemoryPath = "", WindowSize = 12288 }));
        Assert.Equal(GuestMemoryError.InvalidRecord, Of(new() { SocketPath = "", MemoryPath = "", Strategy = UffdStrategy.OnDemand, RecordPath = _folder["no/such/r"] }));
        Assert.False(File.Exists(_folder["r"]));
        Assert.False(File.Exists(_folder["h.sock"]));
    }

    private UffdHandler Start(UffdHandlerOptions options) => UffdHandler.Start(new UffdHandlerOptions
    {
        SocketPath = _folder["h.sock"],
        MemoryPath = _folder["image"],
        Strategy = options.Strategy,
        RecordPath = options.RecordPath,
        ReplayPath = options.ReplayPath,
        WindowSize = options.WindowSize,
        FillRate = options.FillRate,
    });

    private static void Touch(UffdHandler handler, int[] pages, bool twice)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        foreach (var page in twice ? [.. pages, .. pages] : pages) memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[8]);
    }

    private static void AssertPages(GuestMemoryMmap memory, int[] pages)
    {
        foreach (var page in pages) TestFolder.AssertPages(memory, page, 1);
    }
}
