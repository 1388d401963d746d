namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md 16.2, 16.3 and 16.8: slices by guest addresses and by offsets in a region.</summary>
public sealed class GuestMemorySliceVectorTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData(0x100UL, 0x200UL, OddSizes = true)]
    [BackingData(0x800UL, 0x400UL, OddSizes = true)]
    [BackingData(0x900UL, 0UL, OddSizes = true)]
    public void V16_2_GetSlice(string backing, ulong address, ulong count)
    {
        var memory = _memory.Space(backing, (0, 0x400), (0x800, 0x400));
        var slice = memory.GetSlice(new GuestAddress(address), count);
        Assert.Equal(count, slice.Size);
        if (count == 0) return;
        slice.WriteObject(count - 1, (byte)42);
        Assert.Equal(42, memory.ReadObject<byte>(new GuestAddress(address + count - 1)));
    }

    [Theory]
    [InlineData(0, 0x500, GuestMemoryError.InvalidBackendAddress, 0x500)]
    [InlineData(0x600, 0x100, GuestMemoryError.InvalidGuestAddress, 0x600)]
    [InlineData(0xc00, 0x100, GuestMemoryError.InvalidGuestAddress, 0xc00)]
    public void V16_2_GetSliceOfWhatIsNotThere(ulong address, ulong count, GuestMemoryError error, ulong named)
    {
        var memory = _memory.Space("anonymous", (0, 0x400), (0x800, 0x400));
        var failure = Assert.Throws<GuestMemoryException>(() => memory.GetSlice(new GuestAddress(address), count));
        Assert.Equal((error, named), (failure.Error, failure.Address));
        // What upstream loses is inside.
        if (error == GuestMemoryError.InvalidBackendAddress) Assert.Equal(GuestMemoryError.OutOfBounds, Assert.IsType<VolatileMemoryException>(failure.InnerException).Error);
    }

    /// <summary>The sizes of the slices; then, where it is not null, the address of the error that ends them.</summary>
    [Theory]
    [InlineData(0x100, 0x200, new ulong[] { 0x200 }, null)]
    [InlineData(0x900, 0, new ulong[0], null)]
    [InlineData(0, 0x500, new ulong[] { 0x400 }, 0x400UL)]
    [InlineData(0x600, 0x100, new ulong[0], 0x600UL)]
    [InlineData(0x1000, 0x100, new ulong[0], 0x1000UL)]
    [InlineData(0xa00, 0x400, new ulong[] { 0x200, 0x200 }, null)]
    [InlineData(0, ulong.MaxValue, new ulong[] { 0x400 }, 0x400UL)]
    [InlineData(ulong.MaxValue, ulong.MaxValue, new ulong[0], ulong.MaxValue)]
    public void V16_3_GetSlices(ulong address, ulong count, ulong[] sizes, ulong? error)
    {
        var memory = _memory.Space("anonymous", (0, 0x400), (0x800, 0x400), (0xc00, 0x400));
        var slices = memory.GetSlices(new GuestAddress(address), count);
        var seen = new List<ulong>();
        GuestMemoryException? failure = null;
        while (true)
        {
            try
            {
                if (!slices.MoveNext()) break;
                seen.Add(slices.Current.Size);
            }
            catch (GuestMemoryException exception)
            {
                Assert.Null(failure);
                failure = exception;
            }
        }

        Assert.Equal(sizes, seen);
        Assert.Equal((error is null ? null : GuestMemoryError.InvalidGuestAddress, error), (failure?.Error, failure?.Address));
        Assert.False(slices.MoveNext());
    }

    /// <summary>The same with stop_on_error: an error at once is one, a later one is the end.</summary>
    [Theory]
    [InlineData(0, 0x500, new ulong[] { 0x400 })]
    [InlineData(0x900, 0, new ulong[0])]
    [InlineData(0x600, 0, new ulong[0])]
    [InlineData(0xa00, 0x400, new ulong[] { 0x200, 0x200 })]
    [InlineData(0xa00, ulong.MaxValue, new ulong[] { 0x200, 0x400 })]
    [InlineData(0x600, 0x100, null)]
    public void V16_3_StopOnError(ulong address, ulong count, ulong[]? sizes)
    {
        var memory = _memory.Space("anonymous", (0, 0x400), (0x800, 0x400), (0xc00, 0x400));
        List<ulong> Sizes()
        {
            var seen = new List<ulong>();
            foreach (var slice in memory.GetSlices(new GuestAddress(address), count).StopOnError()) seen.Add(slice.Size);
            return seen;
        }

        if (sizes is null) Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => Sizes()));
        else Assert.Equal(sizes, Sizes());
    }

    [Fact]
    public void V16_3_SlicesEndWithTheAddressSpace()
    {
        var last = ulong.MaxValue - 0x1000;
        var memory = _memory.Space("anonymous", (last, 0x1000));
        var slices = memory.GetSlices(new GuestAddress(last + 0x800), 0x801);
        Assert.True(slices.MoveNext());
        Assert.Equal(0x800UL, slices.Current.Size);
        var failure = Assert.Throws<GuestMemoryException>(() => slices.MoveNext());
        Assert.Equal((GuestMemoryError.InvalidGuestAddress, ulong.MaxValue), (failure.Error, failure.Address));
        Assert.False(slices.MoveNext());
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_8_SlicesOfARegion(string backing)
    {
        var region = _memory.Region(backing, 0x1000, 0x400);
        Assert.Equal(0x200UL, region.GetSlice(new MemoryRegionAddress(0x100), 0x200).Size);
        Assert.True(region.GetSlice(new MemoryRegionAddress(0x200), 0).IsEmpty);
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetSlice(new MemoryRegionAddress(0x300), 0x200)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetSlice(new MemoryRegionAddress(ulong.MaxValue), 2)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 0x500UL, 0UL), Failure.OfSlice(() => region.GetMemory().GetSlice(0x300, 0x200)));
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_8_AnOffsetMovesThePointer(string backing)
    {
        var region = _memory.Region(backing, 0, 5);
        using var whole = region.AsVolatileSlice().PtrGuard();
        using var part = region.GetSlice(new MemoryRegionAddress(2), 3).PtrGuard();
        Assert.Equal(3UL, part.Size);
        // Other memory is somewhere else each time.
        if (!TestMemory.HasHostAddress(backing)) return;
        Assert.Equal(whole.Pointer + 2, part.Pointer);
        Assert.Equal(region.GetHostAddress(default), (ulong)whole.Pointer);
    }

    [Fact]
    public void V16_8_AFileOfFiveBytes()
    {
        File.WriteAllBytes(_memory.Folder["five"], [1, 2, 3, 4, 5]);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(5).WithFile(_memory.Folder["five"]).Build(), new GuestAddress(0x1000));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var buffer = new byte[16];
        Assert.Equal(5, region.Read(default, buffer));
        Assert.Equal(5, memory.Read(new GuestAddress(0x1000), buffer));
        Assert.Equal([1, 2, 3, 4, 5, 0], buffer[..6]);
    }
}
