namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md sections 1 and 16.15, for both kinds of address.</summary>
public sealed class AddressTests
{
    [Fact]
    public void V16_15_Offsets()
    {
        Assert.Equal(0x50UL, new GuestAddress(0x150).CheckedOffsetFrom(new GuestAddress(0x100)));
        Assert.Null(new GuestAddress(0x100).CheckedOffsetFrom(new GuestAddress(0x150)));
        Assert.Equal(0x50UL, new MemoryRegionAddress(0x150) - new MemoryRegionAddress(0x100));
        Assert.Throws<OverflowException>(() => new MemoryRegionAddress(0x100) - new MemoryRegionAddress(0x150));
    }

    [Theory]
    [InlineData(0x128, 8, 0x128UL)]
    [InlineData(0x128, 16, 0x130UL)]
    [InlineData(ulong.MaxValue - 0x3fff, 0x10000, null)]
    [InlineData(0, 1, 0UL)]
    public void V16_15_AlignUp(ulong address, ulong alignment, ulong? expected)
    {
        Assert.Equal(expected, new GuestAddress(address).CheckedAlignUp(alignment)?.Value);
        Assert.Equal(expected, new MemoryRegionAddress(address).CheckedAlignUp(alignment)?.Value);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(12)]
    public void V16_15_AnAlignmentIsAPowerOfTwo(ulong alignment)
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => new GuestAddress(0x128).CheckedAlignUp(alignment));
        Assert.Throws<ArgumentOutOfRangeException>(() => new MemoryRegionAddress(0x128).CheckedAlignUp(alignment));
    }

    [Fact]
    public void V16_15_Bits()
    {
        var address = new GuestAddress(0x5050);
        Assert.Equal(0x5000UL, address.Mask(0xff00));
        Assert.Equal((new GuestAddress(0x5000), new GuestAddress(0x5055)), (address & 0xff00, address | 5));
        var offset = new MemoryRegionAddress(0x5050);
        Assert.Equal((0x5000UL, new MemoryRegionAddress(0x5000), new MemoryRegionAddress(0x5055)), (offset.Mask(0xff00), offset & 0xff00, offset | 5));
    }

    [Fact]
    public void V16_15_TheEnds()
    {
        var last = new GuestAddress(ulong.MaxValue);
        Assert.Equal((new GuestAddress(0), true), last.OverflowingAdd(1));
        Assert.Equal((last, false), last.OverflowingAdd(0));
        Assert.Equal((last, true), new GuestAddress(0).OverflowingSub(1));
        Assert.Null(last.CheckedAdd(1));
        Assert.Null(new GuestAddress(0).CheckedSub(1));
        Assert.Throws<OverflowException>(() => last + 1);
        Assert.Throws<OverflowException>(() => new GuestAddress(0) - 1);
        Assert.Equal((new MemoryRegionAddress(0), true), new MemoryRegionAddress(ulong.MaxValue).OverflowingAdd(1));
    }

    [Fact]
    public void AddressesAreOrderedAndShownInHexadecimal()
    {
        GuestAddress low = new(1), high = new(0x80000000);
        Assert.True(low < high && high > low && low <= high && high >= low && low.CompareTo(high) < 0);
        Assert.Equal(("0x80000000", default), (high.ToString(), new GuestAddress(0)));
    }

    /// <summary>Objects show guest addresses as numbers; those are usable as they are.</summary>
    [Fact]
    public void ANumberIsAGuestAddress()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x2000).Build(), 0x1000);
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.Write(region.GuestAddress, [1, 2, 3]);
        memory.WriteObject(region.LastAddress, (byte)4);
        var back = new byte[3];
        memory.ReadExact(0x1000, back);
        Assert.Equal([1, 2, 3], back);
        Assert.Equal(4, memory.ReadObject<byte>(region.GuestAddress + (region.Size - 1)));
        Assert.Equal((GuestAddress)0x2000, new GuestAddress(0x1000) + 0x1000);
        Assert.Equal(0x1000UL, new GuestAddress(0x3000) - new GuestAddress(0x2000));
        Assert.Equal(new GuestAddress(0x2000), new GuestAddress(0x3000) - 0x1000);
    }
}
