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

    /// <summary>With these numbers the operators of the language are upstream's truth tables.</summary>
    [Fact]
    public void V16_18_NumbersAreUpstreams() => Assert.Equal([0, 1, 2, 3], new[] { (byte)No, (byte)R, (byte)W, (byte)RW });

    /// <summary>The table itself, an address space of such memory, and the memory.</summary>
    [Theory]
    [InlineData(No, true, false, false, false)]
    [InlineData(R, true, true, false, false)]
    [InlineData(W, true, false, true, false)]
    [InlineData(RW, true, true, true, true)]
    public void V16_18_WhatAProtectionAllows(MemoryProtection protection, bool nothing, bool reading, bool writing, bool both)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(4096).WithProtection(protection).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        foreach (var (access, expected) in new[] { (No, nothing), (R, reading), (W, writing), (RW, both) })
        {
            Assert.Equal(expected, protection.Allows(access));
            Assert.Equal(expected, memory.CheckRange(new GuestAddress(0), 4096, access));
        }

        Assert.Equal(writing, protection.HasWrite());
        Check(reading, () => memory.ReadExact(new GuestAddress(8), new byte[100]));
        Check(reading, () => memory.ReadObject<ulong>(new GuestAddress(8)));
        Check(writing, () => memory.WriteExact(new GuestAddress(8), new byte[100]));
        Check(writing, () => memory.WriteObject(new GuestAddress(8), 1UL));

        static void Check(bool allowed, Action access)
        {
            if (allowed) access();
            else Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(access));
        }
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
