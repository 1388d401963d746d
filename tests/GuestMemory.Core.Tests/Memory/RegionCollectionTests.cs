namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md sections 4, 5 and 12: the vectors of 16.1 to 16.4, 16.19 and 16.20 that concern the collection.</summary>
public sealed class RegionCollectionTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_1_Construction(string backing)
    {
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure.Of(() => GuestMemoryMmap.FromRegions([])));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure.Of(() => _memory.Space(backing, (0, 100), (99, 100))));
        Assert.Equal(GuestMemoryError.UnsortedMemoryRegions, Failure.Of(() => _memory.Space(backing, (100, 100), (0, 100))));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure.Of(() => _memory.Space(backing, (100, 100), (100, 100))));
        Assert.Equal(199UL, _memory.Space(backing, (0, 100), (100, 100)).LastAddress);
        Assert.Empty(GuestMemoryMmap.Empty.Regions);
        Assert.Equal(0UL, GuestMemoryMmap.Empty.LastAddress);
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_1_InsertAndRemove(string backing)
    {
        var original = _memory.Space(backing, (0, 0x1000), (0x100000, 0x1000));
        var memory = original.InsertRegion(_memory.Region(backing, 0x8000, 0x1000)).InsertRegion(_memory.Region(backing, 0x4000, 0x1000)).InsertRegion(_memory.Region(backing, 0xc000, 0x1000));
        Assert.Equal([0UL, 0x4000, 0x8000, 0xc000, 0x100000], memory.Regions.Select(region => region.GuestAddress));
        Assert.Equal(2, original.Regions.Count);
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure.Of(() => memory.InsertRegion(_memory.Region(backing, 0xc000, 0x1000))));
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure.Of(() => memory.RemoveRegion(new GuestAddress(0), 128)));
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure.Of(() => memory.RemoveRegion(new GuestAddress(0x4000), 128)));
        var (left, removed) = original.RemoveRegion(new GuestAddress(0x100000), 0x1000);
        Assert.Equal((1, 0x100000UL), (left.Regions.Count, removed.GuestAddress));
        Assert.Empty(left.RemoveRegion(new GuestAddress(0), 0x1000).Memory.Regions);
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_2_Addresses(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x400), (0x800, 0x400));
        foreach (var (address, expected) in new[] { (0x200UL, true), (0x600UL, false), (0xa00UL, true), (0xc00UL, false) })
        {
            Assert.Equal(expected, memory.AddressInRange(new GuestAddress(address)));
            Assert.Equal(expected ? new GuestAddress(address) : null, memory.CheckAddress(new GuestAddress(address)));
        }

        Assert.Null(memory.ToRegionAddress(new GuestAddress(0x600)));
        Assert.Equal((memory.Regions[1], new MemoryRegionAddress(0)), memory.ToRegionAddress(new GuestAddress(0x800)));
        Assert.Equal((memory.Regions[1], new MemoryRegionAddress(0x200)), memory.ToRegionAddress(new GuestAddress(0xa00)));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.GetHostAddress(new GuestAddress(0x600))));
        if (TestMemory.HasHostAddress(backing)) Assert.Equal(memory.GetHostAddress(new GuestAddress(0x800)) + 0x200, memory.GetHostAddress(new GuestAddress(0xa00)));
        else Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => memory.GetHostAddress(new GuestAddress(0x800))));
    }

    [Theory]
    [BackingData(0UL, 0x200UL, 0x200UL, OddSizes = true)]
    [BackingData(0UL, 0xa00UL, 0xa00UL, OddSizes = true)]
    [BackingData(0x800UL, 0x7ffUL, 0xfffUL, OddSizes = true)]
    [BackingData(0x800UL, 0xc00UL, null, OddSizes = true)]
    [BackingData(0UL, ulong.MaxValue, null, OddSizes = true)]
    [BackingData(0x800UL, ulong.MaxValue, null, OddSizes = true)]
    [BackingData(0UL, 0x400UL, null, OddSizes = true)]
    [BackingData(0UL, 0x3ffUL, 0x3ffUL, OddSizes = true)]
    public void V16_3_CheckedOffset(string backing, ulong start, ulong offset, ulong? expected) =>
        Assert.Equal(expected, _memory.Space(backing, (0, 0x400), (0x800, 0x400), (0xc00, 0x400)).CheckedOffset(new GuestAddress(start), offset)?.Value);

    [Theory]
    [BackingData(0UL, 0UL, true, OddSizes = true)]
    [BackingData(0UL, 0x200UL, true, OddSizes = true)]
    [BackingData(0UL, 0x400UL, true, OddSizes = true)]
    [BackingData(0UL, 0xa00UL, false, OddSizes = true)]
    [BackingData(0x800UL, 0x7ffUL, true, OddSizes = true)]
    [BackingData(0x800UL, 0x800UL, true, OddSizes = true)]
    [BackingData(0x800UL, 0x801UL, false, OddSizes = true)]
    [BackingData(0x800UL, 0xc00UL, false, OddSizes = true)]
    [BackingData(0UL, ulong.MaxValue, false, OddSizes = true)]
    [BackingData(0x600UL, 0UL, true, OddSizes = true)]
    public void V16_3_CheckRange(string backing, ulong address, ulong size, bool expected) =>
        Assert.Equal(expected, _memory.Space(backing, (0, 0x400), (0x800, 0x400), (0xc00, 0x400)).CheckRange(new GuestAddress(address), size));

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_4_ReadsAndWrites(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.WriteExact(new GuestAddress(0x2001), new byte[8])));
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

        var one = _memory.Space(backing, (0x1000, 0x400));
        Assert.Equal(5, one.Write(new GuestAddress(0x1000), [1, 2, 3, 4, 5]));
        Assert.Equal(1, one.Write(new GuestAddress(0x13ff), [1, 2, 3, 4, 5]));
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void RegionAddresses(string backing)
    {
        var region = _memory.Region(backing, 0x1000, 0x400);
        Assert.Equal((true, false), (region.AddressInRange(new MemoryRegionAddress(0x3ff)), region.AddressInRange(new MemoryRegionAddress(0x400))));
        Assert.Null(region.CheckAddress(new MemoryRegionAddress(0x400)));
        Assert.Equal(new MemoryRegionAddress(0x3ff), region.CheckedOffset(new MemoryRegionAddress(0x300), 0xff));
        Assert.Null(region.CheckedOffset(new MemoryRegionAddress(0x300), 0x100));
        Assert.Null(region.CheckedOffset(new MemoryRegionAddress(0x300), ulong.MaxValue));
        if (TestMemory.HasHostAddress(backing)) Assert.Equal(region.GetHostAddress(default) + 0x10, region.GetHostAddress(new MemoryRegionAddress(0x10)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetHostAddress(new MemoryRegionAddress(0x400))));
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_20_TheSameMappingAtAnotherAddress(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000));
        memory.Write(new GuestAddress(0x1010), [42]);
        var (left, removed) = memory.RemoveRegion(new GuestAddress(0x1000), 0x1000);
        var moved = left.InsertRegion(new GuestMemoryRegion(removed.GetMemory(), new GuestAddress(0x2000), removed.Name));
        var value = new byte[1];
        moved.ReadExact(new GuestAddress(0x2010), value);
        Assert.Equal(42, value[0]);
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => moved.ReadExact(new GuestAddress(0x1010), value)));
    }

    /// <summary>The second half of 16.19: a snapshot of the map stays what it was.</summary>
    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_19_ReplacingTheMap(string backing)
    {
        var atomic = new GuestMemoryAtomic(_memory.Space(backing, (0, 0x1000), (0x1000, 0x1000)));
        var snapshot = atomic.Memory;
        atomic.Replace(memory => Enumerable.Range(2, 3).Aggregate(memory, (all, i) => all.InsertRegion(_memory.Region(backing, (ulong)i * 0x1000, 0x1000))));
        Assert.Equal((2, 5), (snapshot.Regions.Count, atomic.Memory.Regions.Count));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure.Of(() => atomic.Replace(memory => memory.InsertRegion(_memory.Region(backing, 0, 0x1000)))));
        Assert.Equal(5, atomic.Memory.Regions.Count);
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void ReplacingTakesTurns(string backing)
    {
        var atomic = new GuestMemoryAtomic(GuestMemoryMmap.Empty);
        var regions = Enumerable.Range(0, 200).Select(i => _memory.Region(backing, (ulong)i * 0x1000, 0x1000)).ToArray();
        Parallel.ForEach(regions, region => atomic.Replace(memory => memory.InsertRegion(region)));
        Assert.Equal(200, atomic.Memory.Regions.Count);
    }
}
