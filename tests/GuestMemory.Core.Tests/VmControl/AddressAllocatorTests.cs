using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 11.4.</summary>
public sealed class AddressAllocatorTests
{
    private const ulong Max = ulong.MaxValue;

    [Fact]
    public void V11_4_ItFillsFromBelow()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), 0x100);
        Assert.Equal(0x1000UL, pool.Allocate(0x110, A(0), "zero"));
        Assert.Equal(0x1200UL, pool.Allocate(0x100, A(1), "one"));
        Assert.Equal(0x1300UL, pool.Allocate(0x100, A(2), "two"));
        Assert.Equal((new AddressInterval(0x1200, 0x12FF), "one"), pool.Get(A(1)));
        Assert.Null(pool.Get(A(9)));
        Assert.False(pool.IsEmpty);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(200)]
    public void V11_4_AlignmentsArePowersOfTwo(ulong alignment)
    {
        Assert.Equal(FailureKind.BadAlignment, Kind(() => _ = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), alignment)));
        Assert.Equal(FailureKind.BadAlignment, Kind(() => _ = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), 4, alignment)));
    }

    [Fact]
    public void ThePreferredAlignmentIsAtLeastTheLeast() =>
        Assert.Equal(FailureKind.BadAlignment, Kind(() => _ = new AddressAllocator(new AddressInterval(0, 9), 8, 4)));

    [Fact]
    public void V11_4_WithoutPoolsThereIsNoSpace()
    {
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => new AddressAllocator([]).Allocate(0x10, A(0), "")));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => new AddressAllocator(AddressInterval.Empty).Allocate(0x10, A(0), "")));
        Assert.Equal(0UL, new AddressAllocator([]).MaxAddress);
    }

    [Fact]
    public void V11_4_OneHolderOneRange()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0x1FFF), 0x100);
        Assert.Equal(0x1000UL, pool.Allocate(0x800, A(0), "a"));
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => pool.Allocate(0x800, A(0), "a")));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.Allocate(0x900, A(1), "b")));
        Assert.Equal(0x1800UL, pool.Allocate(0x800, A(1), "b"));
    }

    [Fact]
    public void V11_4_RangesAtAnAddressAndAligned()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0x1FFF), 0x100);
        Assert.Equal(0x1000UL, pool.Allocate(0x10, A(0), "a"));
        pool.AllocateAt(new AddressInterval(0x1200, 0x13ff), A(1), "b");
        Assert.Equal(0x1800UL, pool.AllocateWithAlign(0x800, A(2), "c", 0x800));
    }

    [Fact]
    public void V11_4_AnOverlapNamesItsHolder()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0x1FFF), 1);
        pool.AllocateAt(new AddressInterval(0x1200, 0x19ff), A(0), "a");
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.Allocate(0x800, A(1), "b")));
        Assert.Equal(0x1a00UL, pool.Allocate(0x600, A(2), "c"));
        Assert.Equal(0x1000UL, pool.Allocate(0x200, A(3), "d"));
        Overlaps(0x1b00, 0x1bff, A(2));
        Overlaps(0x1fff, 0x1fff, A(2));
        Overlaps(0x1200, 0x1200, A(0));
        Overlaps(0x11ff, 0x11ff, A(3));
        Overlaps(0x1100, 0x12ff, A(0), A(3));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.AllocateAt(new AddressInterval(0x2000, 0x2000), A(4), "e")));
        Assert.Equal(FailureKind.AllocSizeZero, Kind(() => pool.AllocateAt(AddressInterval.Empty, A(4), "e")));
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => pool.AllocateAt(AddressInterval.Empty, A(0), "a")));

        void Overlaps(ulong start, ulong end, params Alloc[] holders)
        {
            var failure = Assert.Throws<GuestMemoryException>(() => pool.AllocateAt(new AddressInterval(start, end), A(9), "x"));
            Assert.Equal(FailureKind.ExistingAlloc, failure.Error);
            Assert.Contains(holders, holder => failure.Message.Contains(holder.ToString(), StringComparison.Ordinal));
        }
    }

    [Fact]
    public void V11_4_TheLargerAlignmentHolds()
    {
        var coarse = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), 0x100);
        Assert.Equal(0x1000UL, coarse.AllocateWithAlign(0x10, A(0), "", 1));
        Assert.Equal(0x1100UL, coarse.AllocateWithAlign(0x10, A(1), "", 1));
        var fine = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), 4);
        Assert.Equal(0x1000UL, fine.AllocateWithAlign(0x110, A(0), "", 0x100));
        Assert.Equal(0x1200UL, fine.AllocateWithAlign(0x100, A(1), "", 0x100));
        Assert.Equal(FailureKind.BadAlignment, Kind(() => fine.AllocateWithAlign(0x100, A(2), "", 200)));
        Assert.Equal(FailureKind.AllocSizeZero, Kind(() => fine.AllocateWithAlign(0, A(2), "", 200)));
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => fine.AllocateWithAlign(0, A(1), "", 200)));
    }

    [Fact]
    public void V11_4_WhatIsReleasedJoinsItsNeighbours()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0x1FFF), 0x100);
        Assert.Equal(0x1000UL, pool.Allocate(0x100, A(0), ""));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.Allocate(0x1000, A(1), "")));
        Assert.Equal(new AddressInterval(0x1000, 0x10ff), pool.Release(A(0)));
        Assert.Equal(FailureKind.BadAlloc, Kind(() => pool.Release(A(0))));
        Assert.Equal(0x1000UL, pool.Allocate(0x1000, A(1), ""));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.ReleaseContaining(0x2000)));
        Assert.Equal(new AddressInterval(0x1000, 0x1fff), pool.ReleaseContaining(0x1234));
        Assert.True(pool.IsEmpty);
    }

    [Fact]
    public void V11_4_APoolGrows()
    {
        var pool = new AddressAllocator([new AddressInterval(0x1000, 0x1fff)]);
        pool.InsertAt(new AddressInterval(0x3000, 0x3fff));
        foreach (var (start, end) in new (ulong, ulong)[] { (0x1fff, 0x201e), (0x2ff1, 0x3000), (0x1800, 0x27ff) })
            Assert.Equal(FailureKind.RegionOverlap, Kind(() => pool.InsertAt(new AddressInterval(start, end))));
        pool.InsertAt(new AddressInterval(0x2000, 0x2fff));
        Assert.Equal(3, pool.Pools.Count);
        Assert.Equal(0x1000UL, pool.Allocate(0x3000, A(0), ""));
    }

    [Fact]
    public void V11_4_SinglesBecomeOne()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0x1fff));
        foreach (var address in new[] { 0x2001UL, 0x2003UL, 0x2000UL, 0x2002UL }) pool.InsertAt(new AddressInterval(address, address));
        Assert.Equal(0x1000UL, pool.Allocate(0x1004, A(0), ""));
    }

    [Theory]
    [InlineData(0, Max - 1, Max, Max)]
    [InlineData(1, Max, 0, 0)]
    public void V11_4_Limits(ulong start, ulong end, ulong restStart, ulong restEnd)
    {
        var pool = new AddressAllocator(new AddressInterval(start, end));
        pool.InsertAt(new AddressInterval(restStart, restEnd));
        Assert.Equal(FailureKind.RegionOverlap, Kind(() => pool.InsertAt(new AddressInterval(restStart, restEnd))));
        Assert.Equal(Max, pool.MaxAddress);
        Assert.Equal(0UL, pool.Allocate(Max, A(0), ""));
    }

    [Fact]
    public void V11_4_PciOffsets()
    {
        var pool = new AddressAllocator(new AddressInterval(0x1000, 0xFFFF), 0x100);
        Alloc bar0 = new Alloc.PciBar(1, 2, 0, 0), bar1 = new Alloc.PciBar(1, 2, 0, 1), bar2 = new Alloc.PciBar(1, 2, 0, 2);
        Assert.Equal(0x1000UL, pool.Allocate(0x800, bar0, "bar0"));
        Assert.Equal(0x1800UL, pool.Allocate(0x800, bar1, "bar1"));
        Assert.Equal(0x2000UL, pool.Allocate(0x100, A(0), "anon"));
        Assert.Equal(0x1600UL, pool.AddressFromPciOffset(bar0, 0x600, 0x100));
        Assert.Equal(0x1e00UL, pool.AddressFromPciOffset(bar1, 0x600, 0x100));
        Assert.Equal(0x17feUL, pool.AddressFromPciOffset(bar0, 0x7fe, 1));
        Assert.Equal(0x17ffUL, pool.AddressFromPciOffset(bar0, 0x7ff, 1));
        Assert.Equal(FailureKind.OutOfBounds, Kind(() => pool.AddressFromPciOffset(bar0, 0x800, 1)));
        Assert.Equal(FailureKind.OutOfBounds, Kind(() => pool.AddressFromPciOffset(bar0, Max, 1)));
        Assert.Equal(FailureKind.OutOfBounds, Kind(() => pool.AddressFromPciOffset(bar0, 0x600, Max)));
        Assert.Equal(FailureKind.OutOfBounds, Kind(() => pool.AddressFromPciOffset(bar0, 0, 0)));
        Assert.Equal(FailureKind.InvalidAlloc, Kind(() => pool.AddressFromPciOffset(bar2, 0x600, 0x100)));
        Assert.Equal(FailureKind.InvalidAlloc, Kind(() => pool.AddressFromPciOffset(A(0), 0x60, 0x10)));
    }

    [Fact]
    public void V11_4_HighestAddress()
    {
        var pool = new AddressAllocator([new AddressInterval(0x1000, 0xFFFF), new AddressInterval(0x20000, 0xFFFFF)]);
        Assert.Equal(0xFFFFFUL, pool.MaxAddress);
    }

    [Fact]
    public void ReverseTakesTheHighest()
    {
        var pool = new AddressAllocator([new AddressInterval(0x1000, 0x1fff), new AddressInterval(0x5000, 0x5fff)], 0x100);
        Assert.Equal(0x5e00UL, pool.ReverseAllocate(0x110, A(0), ""));
        Assert.Equal(0x5800UL, pool.ReverseAllocateWithAlign(0x100, A(1), "", 0x800));
        Assert.Equal(0x5000UL, pool.ReverseAllocateWithAlign(0x800, A(2), "", 0x800));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => pool.ReverseAllocate(0x1001, A(3), "")));
    }

    [Fact]
    public void TheSetTriesOneAfterTheOther()
    {
        var low = new AddressAllocator(new AddressInterval(0x1000, 0x1fff));
        var high = new AddressAllocator(new AddressInterval(0x8000, 0x9fff));
        var set = new AddressAllocatorSet(low, high);
        Assert.Equal(0x8000UL, set.Allocate(0x2000, A(0), "big"));
        Assert.Equal(0x1000UL, set.AllocateWithAlign(0x10, A(1), "small", 0x1000));
        Assert.Equal("big", set.Get(A(0))?.Tag);
        Assert.Null(set.Get(A(5)));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => set.Allocate(0x1000, A(2), "")));
        set.AllocateAt(new AddressInterval(0x1100, 0x11ff), A(3), "");
        Assert.Equal(new AddressInterval(0x8000, 0x9fff), set.Release(A(0)));
        Assert.Equal(FailureKind.BadAlloc, Kind(() => set.Release(A(0))));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => new AddressAllocatorSet().AllocateAt(new AddressInterval(0, 1), A(0), "")));
        Assert.Equal(FailureKind.InvalidAlloc, Kind(() => set.AddressFromPciOffset(A(1), 0, 1)));
    }

    [Fact]
    public void TheTextForADebuggerNamesThePools()
    {
        var low = new AddressAllocator([new AddressInterval(0x1000, 0x1fff), new AddressInterval(0x5000, 0x5fff)]);
        low.Allocate(0x10, A(0), "");
        Assert.Equal("1 allocated from 0x1000..=0x1fff, 0x5000..=0x5fff", low.ToString());
        Assert.Equal("0 allocated from no pool; " + low, new AddressAllocatorSet(new AddressAllocator([]), low).ToString());
        var machine = new SystemAllocator(new SystemAllocatorConfig { Io = new AddressInterval(0xc000, 0xffff), LowMmio = new AddressInterval(0x10000, 0x1ffff), HighMmio = new AddressInterval(0x40000, 0x4ffff) });
        Assert.Equal("MMIO: 0 allocated from 0x10000..=0x1ffff; 0 allocated from 0x40000..=0x4ffff; ports: 0 allocated from 0xc000..=0xffff", machine.ToString());
    }

    private static Alloc A(ulong id) => new Alloc.Anon(id);

    private static FailureKind Kind(Action action) => Assert.Throws<GuestMemoryException>(action).Error;
}
