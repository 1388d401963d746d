namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md sections 4, 5 and 12: the vectors of 16.1 to 16.4, 16.19 and 16.20 that concern the collection.</summary>
public sealed class RegionCollectionTests : IDisposable
{
    private readonly List<GuestRegionMmap> _regions = [];

    public void Dispose() => _regions.ForEach(region => region.Dispose());

    [Fact]
    public void V16_1_Construction()
    {
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure(() => GuestMemoryMmap.FromRegions([])));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure(() => Space((0, 100), (99, 100))));
        Assert.Equal(GuestMemoryError.UnsortedMemoryRegions, Failure(() => Space((100, 100), (0, 100))));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure(() => Space((100, 100), (100, 100))));
        Assert.Equal(199UL, Space((0, 100), (100, 100)).LastAddress);
        Assert.Empty(GuestMemoryMmap.Empty.Regions);
        Assert.Equal(0UL, GuestMemoryMmap.Empty.LastAddress);
    }

    [Fact]
    public void V16_1_InsertAndRemove()
    {
        var original = Space((0, 0x1000), (0x100000, 0x1000));
        var memory = original.InsertRegion(Region(0x8000, 0x1000)).InsertRegion(Region(0x4000, 0x1000)).InsertRegion(Region(0xc000, 0x1000));
        Assert.Equal([0UL, 0x4000, 0x8000, 0xc000, 0x100000], memory.Regions.Select(region => region.GuestAddress));
        Assert.Equal(2, original.Regions.Count);
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure(() => memory.InsertRegion(Region(0xc000, 0x1000))));
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure(() => memory.RemoveRegion(new GuestAddress(0), 128)));
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure(() => memory.RemoveRegion(new GuestAddress(0x4000), 128)));
        var (left, removed) = original.RemoveRegion(new GuestAddress(0x100000), 0x1000);
        Assert.Equal((1, 0x100000UL), (left.Regions.Count, removed.GuestAddress));
        Assert.Empty(left.RemoveRegion(new GuestAddress(0), 0x1000).Memory.Regions);
    }

    [Fact]
    public void V16_2_Addresses()
    {
        var memory = Space((0, 0x400), (0x800, 0x400));
        foreach (var (address, expected) in new[] { (0x200UL, true), (0x600UL, false), (0xa00UL, true), (0xc00UL, false) })
        {
            Assert.Equal(expected, memory.AddressInRange(new GuestAddress(address)));
            Assert.Equal(expected ? new GuestAddress(address) : null, memory.CheckAddress(new GuestAddress(address)));
        }

        Assert.Null(memory.ToRegionAddress(new GuestAddress(0x600)));
        Assert.Equal((memory.Regions[1], new MemoryRegionAddress(0)), memory.ToRegionAddress(new GuestAddress(0x800)));
        Assert.Equal((memory.Regions[1], new MemoryRegionAddress(0x200)), memory.ToRegionAddress(new GuestAddress(0xa00)));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure(() => memory.GetHostAddress(new GuestAddress(0x600))));
        Assert.Equal(memory.GetHostAddress(new GuestAddress(0x800)) + 0x200, memory.GetHostAddress(new GuestAddress(0xa00)));
    }

    [Theory]
    [InlineData(0, 0x200, 0x200UL)]
    [InlineData(0, 0xa00, 0xa00UL)]
    [InlineData(0x800, 0x7ff, 0xfffUL)]
    [InlineData(0x800, 0xc00, null)]
    [InlineData(0, ulong.MaxValue, null)]
    [InlineData(0x800, ulong.MaxValue, null)]
    [InlineData(0, 0x400, null)]
    [InlineData(0, 0x3ff, 0x3ffUL)]
    public void V16_3_CheckedOffset(ulong start, ulong offset, ulong? expected) =>
        Assert.Equal(expected, Space((0, 0x400), (0x800, 0x400), (0xc00, 0x400)).CheckedOffset(new GuestAddress(start), offset)?.Value);

    [Theory]
    [InlineData(0, 0, true)]
    [InlineData(0, 0x200, true)]
    [InlineData(0, 0x400, true)]
    [InlineData(0, 0xa00, false)]
    [InlineData(0x800, 0x7ff, true)]
    [InlineData(0x800, 0x800, true)]
    [InlineData(0x800, 0x801, false)]
    [InlineData(0x800, 0xc00, false)]
    [InlineData(0, ulong.MaxValue, false)]
    [InlineData(0x600, 0, true)]
    public void V16_3_CheckRange(ulong address, ulong size, bool expected) =>
        Assert.Equal(expected, Space((0, 0x400), (0x800, 0x400), (0xc00, 0x400)).CheckRange(new GuestAddress(address), size));

    [Fact]
    public void V16_4_ReadsAndWrites()
    {
        var memory = Space((0, 0x1000), (0x1000, 0x1000));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure(() => memory.WriteExact(new GuestAddress(0x2001), new byte[8])));
        var partial = Assert.Throws<PartialBufferException>(() => memory.WriteExact(new GuestAddress(0x1ffc), new byte[8]));
        Assert.Equal((8UL, 4UL), (partial.Expected, partial.Completed));
        Assert.Contains("Only 4 of 8", partial.Message, StringComparison.Ordinal);
        foreach (var (address, value) in new[] { (0x500UL, 0xaa55aa55aa55aa55UL), (0x1020UL, 0x55aa55aa55aa55aaUL) })
        {
            memory.WriteExact(new GuestAddress(address), BitConverter.GetBytes(value));
            var back = new byte[8];
            memory.ReadExact(new GuestAddress(address), back);
            Assert.Equal(value, BitConverter.ToUInt64(back));
        }

        var one = Space((0x1000, 0x400));
        Assert.Equal(5, one.Write(new GuestAddress(0x1000), [1, 2, 3, 4, 5]));
        Assert.Equal(1, one.Write(new GuestAddress(0x13ff), [1, 2, 3, 4, 5]));
    }

    [Fact]
    public void RegionAddresses()
    {
        var region = Region(0x1000, 0x400);
        Assert.Equal((true, false), (region.AddressInRange(new MemoryRegionAddress(0x3ff)), region.AddressInRange(new MemoryRegionAddress(0x400))));
        Assert.Null(region.CheckAddress(new MemoryRegionAddress(0x400)));
        Assert.Equal(new MemoryRegionAddress(0x3ff), region.CheckedOffset(new MemoryRegionAddress(0x300), 0xff));
        Assert.Null(region.CheckedOffset(new MemoryRegionAddress(0x300), 0x100));
        Assert.Null(region.CheckedOffset(new MemoryRegionAddress(0x300), ulong.MaxValue));
        Assert.Equal(region.HostAddress + 0x10, region.GetHostAddress(new MemoryRegionAddress(0x10)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure(() => region.GetHostAddress(new MemoryRegionAddress(0x400))));
    }

    [Fact]
    public void V16_20_TheSameMappingAtAnotherAddress()
    {
        var memory = Space((0x1000, 0x1000));
        memory.Write(new GuestAddress(0x1010), [42]);
        var (left, removed) = memory.RemoveRegion(new GuestAddress(0x1000), 0x1000);
        var moved = left.InsertRegion(new GuestRegionMmap(removed.GetMapping(), new GuestAddress(0x2000), removed.Name));
        var value = new byte[1];
        moved.ReadExact(new GuestAddress(0x2010), value);
        Assert.Equal(42, value[0]);
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure(() => moved.ReadExact(new GuestAddress(0x1010), value)));
    }

    /// <summary>The second half of 16.19: a snapshot of the map stays what it was.</summary>
    [Fact]
    public void V16_19_ReplacingTheMap()
    {
        var atomic = new GuestMemoryAtomic(Space((0, 0x1000), (0x1000, 0x1000)));
        var snapshot = atomic.Memory;
        atomic.Replace(memory => Enumerable.Range(2, 3).Aggregate(memory, (all, i) => all.InsertRegion(Region((ulong)i * 0x1000, 0x1000))));
        Assert.Equal((2, 5), (snapshot.Regions.Count, atomic.Memory.Regions.Count));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure(() => atomic.Replace(memory => memory.InsertRegion(Region(0, 0x1000)))));
        Assert.Equal(5, atomic.Memory.Regions.Count);
    }

    [Fact]
    public void ReplacingTakesTurns()
    {
        var atomic = new GuestMemoryAtomic(GuestMemoryMmap.Empty);
        var regions = Enumerable.Range(0, 200).Select(i => Region((ulong)i * 0x1000, 0x1000)).ToArray();
        Parallel.ForEach(regions, region => atomic.Replace(memory => memory.InsertRegion(region)));
        Assert.Equal(200, atomic.Memory.Regions.Count);
    }

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    private GuestRegionMmap Region(ulong address, ulong size)
    {
        var region = new GuestRegionMmap(new MmapRegionBuilder(size).Build(), new GuestAddress(address), "test");
        _regions.Add(region);
        return region;
    }

    private GuestMemoryMmap Space(params (ulong Address, ulong Size)[] layout) => GuestMemoryMmap.FromRegions(layout.Select(part => Region(part.Address, part.Size)));
}
