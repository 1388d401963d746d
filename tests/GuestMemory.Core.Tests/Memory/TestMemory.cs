namespace GuestMemory.Core.Tests;

/// <summary>Regions of some kind, all zeros, for one test.</summary>
internal sealed class TestMemory : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestMemoryRegion> _regions = [];
    private readonly List<UffdHandler> _handlers = [];

    /// <summary>Every kind of memory; a test of one that this host does not have is skipped when it maps it.</summary>
    public static string[] Kinds { get; } = ["anonymous", "memfd", "file", "window", "pread", "foreign", "granted", "served"];

    /// <summary>The kinds of memory that this host has.</summary>
    public static string[] Backings => Needs.Userfaultfd ? Kinds : Kinds[..^1];

    public TestFolder Folder => _folder;

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        foreach (var handler in _handlers) handler.Dispose();
        _folder.Dispose();
    }

    /// <summary>Whether memory of a kind has an address in this process.</summary>
    public static bool HasHostAddress(string backing) => backing is not ("window" or "pread" or "granted");

    /// <summary>Whether accesses to memory of a kind are guarded.</summary>
    public static bool IsGuarded(string backing) => backing is not ("anonymous" or "memfd" or "foreign");

    /// <summary>Memory with a bitmap.</summary>
    public VolatileMemory Map(string backing, ulong size)
    {
        if (backing is "foreign" or "granted") return MapXen(backing == "foreign" ? MmapXenFlags.Foreign : MmapXenFlags.Grant | MmapXenFlags.NoAdvanceMap, size);
        if (!HasHostAddress(backing))
        {
            VolatileMemory memory = backing == "window" ? new WindowMemory(size) : new PreadMemory(NewFile((long)size), size);
            memory.SetTracker(new AtomicBitmap(size, HostPage.Size));
            return memory;
        }

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
        var regions = parts.Select(part => Map(part.Backing, part.Size) is var memory && memory is MmapRegion mapping
            ? new GuestRegionMmap(mapping, new GuestAddress(part.Address), part.Backing)
            : new GuestMemoryRegion(memory, new GuestAddress(part.Address), part.Backing)).ToArray();
        _regions.AddRange(regions);
        if (regions.Where((_, i) => parts[i].Backing == "served").ToArray() is { Length: > 0 } served) Serve(served);
        return GuestMemoryMmap.FromRegions(regions);
    }

    /// <summary>One region of one kind, at an address.</summary>
    public GuestMemoryRegion Region(string backing, ulong address, ulong size) => Space(backing, (address, size)).Regions[0];

    /// <summary>A part of page-aligned memory of one kind that has no more bytes than these.</summary>
    public VolatileSlice Slice(string backing, params byte[] content)
    {
        var region = Region(backing, 0, HostPage.Size);
        region.Write(default, content);
        region.RequireTracker().Reset();
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

    /// <summary>Memory of another Xen domain; the devices are made up.</summary>
    private static VolatileMemory MapXen(MmapXenFlags flags, ulong size)
    {
        using var xen = new FakeXen(size) { Records = false };
        return XenMmapRegion.FromRange(new MmapRange(size, 0, flags, 1) { File = xen.Device, DirtyTracking = true }, xen);
    }

    private void Serve(GuestMemoryRegion[] regions)
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
