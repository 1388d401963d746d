namespace GuestMemory.Core.Tests;

/// <summary>Regions of some kind, all zeros, for one test.</summary>
internal sealed class TestMemory : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];
    private readonly List<UffdHandler> _handlers = [];

    /// <summary>Every kind of memory; a test of one that this host does not have is skipped when it maps it.</summary>
    public static string[] Kinds { get; } = ["anonymous", "memfd", "file", "served"];

    /// <summary>The kinds of memory that this host has.</summary>
    public static string[] Backings => Needs.Userfaultfd ? Kinds : Kinds[..^1];

    public TestFolder Folder => _folder;

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        foreach (var handler in _handlers) handler.Dispose();
        _folder.Dispose();
    }

    /// <summary>Memory with a bitmap.</summary>
    public MmapRegion Map(string backing, ulong size)
    {
        var builder = new MmapRegionBuilder(size).WithDirtyTracking();
        return backing switch
        {
            "memfd" => builder.WithMemfd().Build(),
            "file" => builder.WithFile(NewFile((long)size)).Build(),
            "huge" => builder.WithHugePages(2 << 20).Build(),
            _ => builder.Build(),
        };
    }

    /// <summary>An address space of regions of one kind.</summary>
    public GuestMemoryMmap Space(string backing, params (ulong Address, ulong Size)[] layout) =>
        Space(layout.Select(part => (backing, part.Address, part.Size)));

    /// <summary>An address space of regions of any kinds; what a handler serves has whole pages.</summary>
    public GuestMemoryMmap Space(IEnumerable<(string Backing, ulong Address, ulong Size)> layout)
    {
        var parts = layout.ToArray();
        var regions = parts.Select(part => new GuestRegionMmap(Map(part.Backing, part.Size), new GuestAddress(part.Address), part.Backing)).ToArray();
        _regions.AddRange(regions);
        if (regions.Where((_, i) => parts[i].Backing == "served").ToArray() is { Length: > 0 } served) Serve(served);
        return GuestMemoryMmap.FromRegions(regions);
    }

    /// <summary>One region of one kind, at an address.</summary>
    public GuestRegionMmap Region(string backing, ulong address, ulong size) => Space(backing, (address, size)).Regions[0];

    /// <summary>A part of page-aligned memory of one kind that has no more bytes than these.</summary>
    public VolatileSlice Slice(string backing, params byte[] content)
    {
        var region = Region(backing, 0, HostPage.Size);
        region.Write(content, default);
        region.GetMapping().Bitmap!.Tracker!.Reset();
        return region.GetSlice(default, (ulong)content.Length);
    }

    /// <summary>A new file of zeros.</summary>
    public string NewFile(long length)
    {
        var path = _folder[Path.GetRandomFileName()];
        using var file = File.Create(path);
        file.SetLength(length);
        return path;
    }

    private void Serve(GuestRegionMmap[] regions)
    {
        Assert.SkipUnless(Needs.Userfaultfd, Needs.UserfaultfdReason);
        var handler = UffdHandler.Start(new UffdHandlerOptions
        {
            SocketPath = _folder[Path.GetRandomFileName()],
            MemoryPath = NewFile((long)regions.Aggregate(0UL, (sum, region) => sum + region.Size)),
        });
        _handlers.Add(handler);
        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions(regions));
    }
}
