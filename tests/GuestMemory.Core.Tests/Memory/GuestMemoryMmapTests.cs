namespace GuestMemory.Core.Tests;

public sealed class GuestMemoryMmapTests
{
    [Fact]
    public void ReadsAndWritesCrossRegionsThatTouch()
    {
        using var memory = new Layout(0, 0x1000, 0x1000, 0x1000);
        byte[] five = [1, 2, 3, 4, 5];
        Assert.Equal(5, memory.Space.Write(new GuestAddress(0xffc), five));
        var back = new byte[5];
        Assert.Equal(5, memory.Space.Read(new GuestAddress(0xffc), back));
        Assert.Equal(five, back);
    }

    [Fact]
    public void AHoleEndsATransferAndAnUnmappedStartRefusesIt()
    {
        using var memory = new Layout(0, 0x1000, 0x3000, 0x1000);
        GuestMemoryException error = Assert.Throws<PartialBufferException>(() => memory.Space.WriteExact(new GuestAddress(0xffc), new byte[8]));
        Assert.Equal(GuestMemoryError.PartialBuffer, error.Error);
        Assert.Contains("Only 4 of 8", error.Message, StringComparison.Ordinal);
        error = Assert.Throws<GuestMemoryException>(() => memory.Space.Read(new GuestAddress(0x1000), new byte[8]));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, error.Error);
        Assert.Equal(0, memory.Space.Read(new GuestAddress(0x1000), []));
    }

    [Fact]
    public void RequireRangeNamesTheFirstMissingAddress()
    {
        using var memory = new Layout(0, 0x1000, 0x3000, 0x1000);
        memory.Space.RequireRange(new GuestAddress(0), 0x1000);
        memory.Space.RequireRange(new GuestAddress(0x9000), 0);
        var error = Assert.Throws<GuestMemoryException>(() => memory.Space.RequireRange(new GuestAddress(0x800), 0x1000));
        Assert.Contains("0x1000 ", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void OverlappingRegionsAreRefused()
    {
        using var first = new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(0));
        using var second = new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(4095));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Assert.Throws<GuestMemoryException>(() => GuestMemoryMmap.FromRegions([first, second])).Error);
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Assert.Throws<GuestMemoryException>(() => GuestMemoryMmap.FromRegions([])).Error);
    }

    [Fact]
    public void ARegionMustEndBelowTwoToThe64()
    {
        using var mapping = new MmapRegionBuilder(4096).Build();
        Assert.Equal(GuestMemoryError.InvalidGuestRegion, Assert.Throws<GuestMemoryException>(() => new GuestRegionMmap(mapping, new GuestAddress(ulong.MaxValue - 4095))).Error);
        using var region = new GuestRegionMmap(mapping, new GuestAddress(ulong.MaxValue - 4096));
        Assert.Equal(ulong.MaxValue - 1, region.LastAddress);
    }

    [Fact]
    public void WritesMarkExactlyThePagesTheyTouch()
    {
        using var memory = new Layout(0x10000, 0x10000);
        memory.Space.Write(new GuestAddress(0x10fff), [1, 2]);
        memory.Space.Write(new GuestAddress(0x15000), [1]);
        memory.Space.Read(new GuestAddress(0x18000), new byte[100]);
        var ranges = memory.Space.Regions[0].GetDirtyBitmap(clear: true).GetRanges().ToArray();
        Assert.Equal([new AddressRange(0x10000, 0x2000, 2), new AddressRange(0x15000, 0x1000, 1)], ranges);
        Assert.Empty(memory.Space.Regions[0].GetDirtyBitmap().GetRanges());
    }

    [Fact]
    public void FindRegionAmongMany()
    {
        using var memory = new Layout([.. Enumerable.Range(0, 64).SelectMany(i => new[] { (ulong)i * 0x2000, 0x1000UL })]);
        for (ulong i = 0; i < 64; i++)
        {
            Assert.Equal(i * 0x2000, memory.Space.FindRegion(new GuestAddress((i * 0x2000) + 0xfff))!.GuestAddress);
            Assert.Null(memory.Space.FindRegion(new GuestAddress((i * 0x2000) + 0x1000)));
        }
    }

    private sealed class Layout : IDisposable
    {
        public Layout(params ulong[] addressesAndSizes)
        {
            Space = GuestMemoryMmap.FromRegions(addressesAndSizes.Chunk(2).Select(pair =>
                new GuestRegionMmap(new MmapRegionBuilder(pair[1]).WithDirtyTracking().Build(), new GuestAddress(pair[0]))));
        }

        public GuestMemoryMmap Space { get; }

        public void Dispose()
        {
            foreach (var region in Space.Regions) region.Dispose();
        }
    }
}
