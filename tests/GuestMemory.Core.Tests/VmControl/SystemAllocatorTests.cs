using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 11.6.</summary>
public sealed class SystemAllocatorTests
{
    private static readonly SystemAllocatorConfig s_config = new()
    {
        Io = new AddressInterval(0x1000, 0xffff),
        LowMmio = new AddressInterval(0x30000000, 0x3000ffff),
        HighMmio = new AddressInterval(0x10000000, 0x1fffffff),
        FirstIrq = 5,
    };

    private readonly SystemAllocator _system = new(s_config);

    [Fact]
    public void V11_6_NumbersGoUp()
    {
        Assert.Equal(5U, _system.AllocateIrq());
        Assert.Equal(6U, _system.AllocateIrq());
        Assert.Equal(0U, _system.AllocateGpe());
        Assert.Equal(1U, _system.AllocateGpe());
    }

    [Fact]
    public void V11_6_HighMmio()
    {
        var alloc = new Alloc.Anon(0);
        Assert.Equal(0x10000000UL, _system.HighMmio.Allocate(0x100, alloc, "test"));
        Assert.Equal((new AddressInterval(0x10000000, 0x100000ff), "test"), _system.HighMmio.Get(alloc));
    }

    [Fact]
    public void V11_6_AReservedRangeIsTaken()
    {
        var range = new AddressInterval(0x30005000, 0x30009fff);
        var alloc = _system.NextAnonAlloc();
        _system.LowMmio.AllocateAt(range, alloc, "test");
        Assert.Equal(range, _system.LowMmio.Release(alloc));
        _system.ReserveMmio(new AddressInterval(0x30002000, 0x30005fff));
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => _system.LowMmio.AllocateAt(range, alloc, "test")));
    }

    [Fact]
    public void AFailedReservationTakesNothing()
    {
        _system.LowMmio.AllocateAt(new AddressInterval(0x30000000, 0x30000fff), new Alloc.Anon(99), "");
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => _system.ReserveMmio(new AddressInterval(0, ulong.MaxValue))));
        Assert.Equal(0x10000000UL, _system.AllocateMmio(0x10000000, new Alloc.Anon(100), "", new MmioOptions { Prefetchable = true }));
    }

    [Fact]
    public void AHolderHasOneRangeInAllOfMmio()
    {
        var alloc = new Alloc.PciBar(0, 1, 0, 0);
        _system.AllocateMmio(0x1000, alloc, "", new MmioOptions { Prefetchable = true });
        Assert.Equal(FailureKind.ExistingAlloc, Kind(() => _system.AllocateMmio(0x1000, alloc, "")));
    }

    [Fact]
    public void PortsEndAtFfff()
    {
        Assert.Equal(FailureKind.IOPortOutOfRange, Kind(() => _ = new SystemAllocator(s_config with { Io = new AddressInterval(0, 0x10000) })));
        Assert.Equal(0x1000UL, _system.Io.Allocate(1, new Alloc.Anon(0), "a"));
        Assert.Equal(0x1400UL, _system.Io.Allocate(1, new Alloc.Anon(1), "b"));
        Assert.Equal(FailureKind.NoIoAllocator, Kind(() => _ = new SystemAllocator(s_config with { Io = null }).Io));
        Assert.Equal(FailureKind.MissingPlatformMmioAddresses, Kind(() => _ = _system.PlatformMmio));
    }

    [Fact]
    public void TheReservedRegionIsCutOffHighMmio()
    {
        var system = new SystemAllocator(s_config, 0x1000);
        Assert.Equal(new AddressInterval(0x10000000, 0x10000fff), system.ReservedRegion);
        Assert.Equal(0x10001000UL, system.HighMmio.Allocate(0x100, new Alloc.Anon(0), ""));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => _ = new SystemAllocator(s_config, 0x10000001)));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => new SystemAllocator(s_config, 0x10000000).HighMmio.Allocate(1, new Alloc.Anon(0), "")));
    }

    [Fact]
    public void PoolsAreCutDownToWhereMmioCanBe()
    {
        var system = new SystemAllocator(s_config, null, [new AddressInterval(0x30008000, 0x30008fff), new AddressInterval(0x10000000, 0x10000fff), new AddressInterval(0x1ffff000, 0x1fffffff)]);
        Assert.Equal("0x30008000..=0x30008fff 0x3000a000..=0x3000ffff", string.Join(' ', new SystemAllocator(s_config, null,
            [new AddressInterval(0x30008000, 0x30008fff), new AddressInterval(0x3000a000, ulong.MaxValue)]).LowMmio.Pools));
        Assert.Equal(FailureKind.RegionOverlap, Kind(() => _ = new SystemAllocator(s_config, null, [new AddressInterval(0, ulong.MaxValue), new AddressInterval(0x30000000, 0x30000000)])));
        Assert.Equal("0x10000000..=0x10000fff 0x1ffff000..=0x1fffffff", string.Join(' ', system.HighMmio.Pools));
    }

    [Theory]
    [InlineData(false, ulong.MaxValue, false, 0x100, 0x30000000)]
    [InlineData(false, ulong.MaxValue, true, 0x1000, 0x3000f000)]
    [InlineData(true, ulong.MaxValue, false, 0x100, 0x10000000)]
    [InlineData(true, uint.MaxValue, false, 0x100, 0x30000000)]
    [InlineData(true, ulong.MaxValue, true, 0x100, 0x1ffff000)]
    public void MmioIsWhereItsOptionsSay(bool prefetchable, ulong maxAddress, bool topDown, ulong size, ulong expected) =>
        Assert.Equal(expected, _system.AllocateMmio(size, new Alloc.Anon(0), "", new MmioOptions { Prefetchable = prefetchable, MaxAddress = maxAddress, TopDown = topDown }));

    [Fact]
    public void MmioFallsBackToLow()
    {
        _system.HighMmio.AllocateAt(new AddressInterval(0x10000000, 0x1fffffff), new Alloc.Anon(50), "");
        Assert.Equal(0x30000000UL, _system.AllocateMmio(0x1000, new Alloc.Anon(0), "", new MmioOptions { Prefetchable = true }));
        Assert.Equal(0x30008000UL, _system.AllocateMmio(0x1000, new Alloc.Anon(1), "", new MmioOptions { Alignment = 0x8000 }));
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => _system.AllocateMmio(1, new Alloc.Anon(2), "", new MmioOptions { MaxAddress = uint.MaxValue - 1 })));
        Assert.Equal(FailureKind.BadAlignment, Kind(() => _system.AllocateMmio(1, new Alloc.Anon(2), "", new MmioOptions { Alignment = 3, Prefetchable = true })));
    }

    [Fact]
    public void InterruptsAreReservedAndReleased()
    {
        Assert.True(_system.ReserveIrq(5));
        Assert.False(_system.ReserveIrq(5));
        Assert.False(_system.ReserveIrq(4));
        Assert.False(_system.ReserveIrq(1024));
        Assert.Equal(6U, _system.AllocateIrq());
        _system.ReleaseIrq(5);
        Assert.Equal(FailureKind.OutOfSpace, Kind(() => _system.ReleaseIrq(5)));
        Assert.Equal(5U, _system.AllocateIrq());
        for (var i = 7; i <= 1023; i++) Assert.Equal((uint)i, _system.AllocateIrq());
        Assert.Null(_system.AllocateIrq());
    }

    [Fact]
    public void PciDevicesThenFunctions()
    {
        Assert.True(_system.IsPciBusEmpty(0));
        for (byte device = 1; device < 32; device++) Assert.Equal(new PciAddress(0, device, 0), _system.AllocatePci(0, "x"));
        Assert.False(_system.IsPciBusEmpty(0));
        Assert.Equal(new PciAddress(0, 1, 1), _system.AllocatePci(0, "x"));
        Assert.False(_system.ReservePci(new PciAddress(0, 1, 1), "x"));
        Assert.False(_system.ReservePci(new PciAddress(0, 0, 0), "x"));
        Assert.False(_system.ReservePci(new PciAddress(0, 32, 0), "x"));
        Assert.True(_system.ReservePci(new PciAddress(3, 0, 0), "x"));
        Assert.Equal(new PciAddress(3, 1, 0), _system.AllocatePci(3, "x"));
        Assert.True(_system.ReleasePci(new PciAddress(3, 0, 0)));
        Assert.False(_system.ReleasePci(new PciAddress(3, 0, 0)));
        Assert.False(_system.ReleasePci(new PciAddress(9, 0, 0)));
        Assert.Equal(new Alloc.Anon(_system.NextAnonAlloc() is Alloc.Anon last ? last.Id + 1 : 0), _system.NextAnonAlloc());
    }

    private static FailureKind Kind(Action action) => Assert.Throws<GuestMemoryException>(action).Error;
}
