namespace GuestMemory.Core.Tests;

public sealed class PermissionTests : IDisposable
{
    private const MemoryProtection No = MemoryProtection.None;
    private const MemoryProtection R = MemoryProtection.Read;
    private const MemoryProtection W = MemoryProtection.Write;
    private const MemoryProtection RW = MemoryProtection.ReadWrite;

    private readonly GuestRegionMmap _open = new(new MmapRegionBuilder(4096).Build(), new GuestAddress(0));
    private readonly GuestRegionMmap _readOnly = new(new MmapRegionBuilder(4096).WithProtection(R).Build(), new GuestAddress(4096));

    public void Dispose()
    {
        _open.Dispose();
        _readOnly.Dispose();
    }

    [Theory]
    [InlineData(No)]
    [InlineData(R)]
    [InlineData(W)]
    [InlineData(RW)]
    public void V16_18_TruthTables(MemoryProtection p)
    {
        Assert.Equal(p, p & p);
        Assert.Equal(No, No & p);
        Assert.Equal(p, RW & p);
        Assert.Equal(No, R & W);
        Assert.Equal(RW, R | W);
        Assert.Equal(p is W or RW, p.HasWrite());
        Assert.True(RW.Allows(p) && p.Allows(No));
        Assert.Equal(p == No, No.Allows(p));
        Assert.Equal([0, 1, 2, 3], new[] { (byte)No, (byte)R, (byte)W, (byte)RW });
    }

    [Theory]
    [InlineData(0, 8192, No, true)]
    [InlineData(0, 8192, R, true)]
    [InlineData(0, 8192, W, false)]
    [InlineData(0, 4096, RW, true)]
    [InlineData(4096, 1, W, false)]
    [InlineData(4096, 0, W, true)]
    [InlineData(4096, 4097, R, false)]
    public void RangesAreCheckedForAnAccess(ulong address, ulong size, MemoryProtection access, bool expected) =>
        Assert.Equal(expected, GuestMemoryMmap.FromRegions([_open, _readOnly]).CheckRange(new GuestAddress(address), size, access));

    [Fact]
    public void SlicesEndWhereAnAccessIsNotAllowed()
    {
        var memory = GuestMemoryMmap.FromRegions([_open, _readOnly]);
        var slices = memory.GetSlices(new GuestAddress(0), 8192, W);
        Assert.True(slices.MoveNext());
        Assert.Equal(4096UL, slices.Current.Size);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => slices.MoveNext()));
        Assert.False(slices.MoveNext());
        var quiet = 0;
        foreach (var slice in memory.GetSlices(new GuestAddress(0), 8192, W).StopOnError()) quiet += (int)slice.Size;
        Assert.Equal(4096, quiet);
    }
}
