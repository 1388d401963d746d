namespace GuestMemory.Core.Tests;

/// <summary>A memory of one kind: the files that a handler serves, the options that it takes, and the region of the VM.</summary>
internal sealed class ServedMemory : IDisposable
{
    private const int Huge = 2 << 20;

    // Slow enough that the filler has work whenever something happens.
    private const int FillSeconds = 8;
    private readonly ServedKind _kind;
    private readonly HugePagePoolOf? _pool;
    private readonly GuestRegionMmap _region;

    /// <summary>Makes files and memory, and skips the test where the host has not the pages.</summary>
    public ServedMemory(TestFolder folder, ServedKind kind, int pages)
    {
        (_kind, Pages) = (kind, pages);
        PageSize = kind == ServedKind.HugePages ? Huge : 4096;
        if (kind == ServedKind.HugePages)
        {
            Assert.SkipUnless(Needs.Root, "needs root, to set the size of the pool of huge pages");
            _pool = new HugePagePoolOf(Huge, pages);
            if (_pool.Free < pages)
            {
                _pool.Dispose();
                Assert.Skip($"only {_pool.Free} of {pages} huge pages could be had; free memory and try again");
            }
        }

        Options = WriteFiles(folder);
        var builder = new MmapRegionBuilder((ulong)pages * (ulong)PageSize);
        builder = kind switch
        {
            ServedKind.HugePages => builder.WithHugePages(Huge),
            ServedKind.Memfd => builder.WithMemfd(),
            _ => builder,
        };
        _region = new GuestRegionMmap(builder.Build(), new GuestAddress(0x100000000));
        Memory = GuestMemoryMmap.FromRegions([_region]);
    }

    public int Pages { get; }

    public int PageSize { get; }

    public UffdHandlerOptions Options { get; }

    public GuestMemoryMmap Memory { get; }

    public void Connect() => UffdRegistration.Connect(Options.SocketPath, Memory, sharesMemory: _kind == ServedKind.Memfd);

    /// <summary>The number that a page is filled with; null for zeros.</summary>
    public int? NumberOf(int page) => _kind switch
    {
        ServedKind.Chunked when page % 7 == 3 => null,
        ServedKind.Layers when page % 6 == 1 => page + (2 * Pages),
        ServedKind.Layers when page % 3 == 1 => page + Pages,
        _ => page,
    };

    public void Dispose()
    {
        _region.Dispose();
        _pool?.Dispose();
    }

    private UffdHandlerOptions WriteFiles(TestFolder folder)
    {
        var (image, record) = (folder["image"], folder["record"]);
        string[] layers = _kind == ServedKind.Layers ? [folder["layer"], folder["top"]] : [];
        if (_kind == ServedKind.Chunked) WithPages(page => NumberOf(page), memory => ChunkedImage.Write(memory, image, overwrite: false));
        else folder.WriteImage("image", Pages, PageSize);
        if (_kind == ServedKind.Layers)
        {
            // A page of the second hides that of the first.
            WithPages(page => page % 3 == 1 ? page + Pages : null, memory => RawImage.WriteDirty(memory, layers[0], force: false));
            WithPages(page => page % 6 == 1 ? page + (2 * Pages) : null, memory => RawImage.WriteDirty(memory, layers[1], force: false));
            Assert.All(layers, static layer => Assert.True(File.Exists(layer + ".dirty")));
        }

        if (_kind == ServedKind.Replay)
        {
            var touched = Enumerable.Range(0, Pages / 2).Select(static page => (uint)page * 2).ToArray();
            new Random(2).Shuffle(touched);
            TouchRecord.Save(record, (ulong)Pages * (ulong)PageSize, touched);
            UffdRecord.MergeWithPages([record], record, image, force: true);
        }

        var fills = _kind is ServedKind.Replay or ServedKind.Background;
        return new UffdHandlerOptions
        {
            SocketPath = folder["h.sock"],
            MemoryPath = image,
            LayerPaths = layers,
            Strategy = _kind switch { ServedKind.Replay => UffdStrategy.Replay, ServedKind.Background => UffdStrategy.Background, _ => UffdStrategy.OnDemand },
            ReplayPath = _kind == ServedKind.Replay ? record : null,
            FillRate = fills ? (ulong)Pages * 4096 / FillSeconds : 0,
        };
    }

    private void WithPages(Func<int, int?> numberOf, Action<GuestMemoryMmap> write)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder((ulong)Pages * 4096).WithDirtyTracking().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var page = new byte[4096];
        for (var i = 0; i < Pages; i++)
        {
            if (numberOf(i) is not { } number) continue;
            TestFolder.Fill(page, number);
            memory.Write(new GuestAddress((ulong)i * 4096), page);
        }

        write(memory);
    }
}
