using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>Slots, on real KVM: the vectors of 11.8 and section 4.</summary>
public sealed class KvmVmTests : IDisposable
{
    private const ulong Page = 0x1000;
    private readonly List<GuestRegionMmap> _regions = [];

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
    }

    [KvmFact]
    public void V11_8_AddedMemoryTakesTheLowestFreeSlot()
    {
        using var vm = Vm((0, Page), (5 * Page, 5 * Page));
        Assert.Equal([0U, 1U], vm.Slots.Select(slot => slot.Slot));
        var slots = Enumerable.Range(0, 5).Select(i => Add(vm, 0x100000 + (ulong)i * 0x10 * Page, 0x10 * Page)).ToArray();
        Assert.Equal([2U, 3U, 4U, 5U, 6U], slots);
        vm.RemoveMemoryRegion(5).Dispose();
        vm.RemoveMemoryRegion(3).Dispose();
        Assert.Equal([3U, 5U, 7U], [Add(vm, 0x10000000, Page), Add(vm, 0x20000000, Page), Add(vm, 0x30000000, Page)]);
    }

    [KvmFact]
    public void FiveThousandSlotsComeAndGo()
    {
        using var vm = Vm((0, Page));
        for (var round = 0; round < 2; round++)
        {
            for (var i = 0U; i < 5000; i++) Assert.Equal(i + 1, Add(vm, 0x100000 + i * Page, Page));
            Assert.Equal(5001, vm.Slots.Count);
            for (var i = 0U; i < 5000; i++) vm.RemoveMemoryRegion(i + 1).Dispose();
        }

        Assert.Single(vm.Slots);
    }

    [KvmFact]
    public void V11_8_AFailureGivesTheSlotBack()
    {
        using var vm = Vm((0, Page), (5 * Page, 5 * Page));
        Assert.Equal(2U, Add(vm, Page, 2 * Page));
        using var mapping = SlotMapping.Anonymous(0x10 * Page);
        Assert.Equal(Errno.ENOSPC, ErrorOf(() => vm.AddMemoryRegion(new GuestAddress(4 * Page), mapping, false, false, MemCacheType.CacheCoherent)));
        Assert.Equal(Errno.ENOSPC, ErrorOf(() => vm.AddMemoryRegion(new GuestAddress(9 * Page), mapping, false, false, MemCacheType.CacheCoherent)));
        Assert.Equal(Errno.EEXIST, ErrorOf(() => vm.AddMemoryRegion(new GuestAddress(0x100000), Added(vm, 0x108000), false, false, MemCacheType.CacheCoherent)));
        Assert.Equal(Errno.EOVERFLOW, ErrorOf(() => vm.AddMemoryRegion(new GuestAddress(ulong.MaxValue - Page), mapping, false, false, MemCacheType.CacheCoherent)));
        Assert.Equal(Errno.EINVAL, ErrorOf(() => vm.AddMemoryRegion(new GuestAddress(0x200800), mapping, false, false, MemCacheType.CacheCoherent)));
        Assert.Equal(4U, Add(vm, 0x200000, Page, readOnly: true));
        Assert.False(mapping.Memory.IsDisposed);
    }

    [KvmFact]
    public void V11_8_RemovingGivesTheMappingBack()
    {
        using var vm = Vm((0, Page));
        var mapping = SlotMapping.Anonymous(0x10 * Page);
        var slot = vm.AddMemoryRegion(new GuestAddress(Page), mapping, readOnly: true, logDirtyPages: false, MemCacheType.CacheNonCoherent);
        Assert.Equal((Page, 0x10 * Page, true, false), (vm.Slots[1].GuestAddress, vm.Slots[1].Size, vm.Slots[1].ReadOnly, vm.Slots[1].IsBase));
        using var removed = vm.RemoveMemoryRegion(slot);
        Assert.Same(mapping, removed);
        Assert.Equal(Errno.ENOENT, ErrorOf(() => vm.RemoveMemoryRegion(slot)));
        Assert.Equal(Errno.ENOENT, ErrorOf(() => vm.RemoveMemoryRegion(0)));
        Assert.Single(vm.Slots);
    }

    [KvmFact]
    public void OddSizesAreRoundedUp()
    {
        using var vm = Vm((0, Page));
        Add(vm, 0x100000, 5);
        Assert.Equal(Page, vm.Slots[1].Size);
        Add(vm, 0x101000, Page + 1);
        Assert.Equal(2 * Page, vm.Slots[2].Size);
    }

    [KvmFact]
    public void ReadOnlyMemoryOfTheHostIsReadOnlyForTheGuest()
    {
        _regions.Add(new GuestRegionMmap(new MmapRegionBuilder(Page).WithProtection(MemoryProtection.Read).Build(), new GuestAddress(0)));
        using var vm = new KvmVm(GuestMemoryMmap.FromRegions(_regions));
        Assert.True(vm.Slots[0].ReadOnly);
    }

    [KvmFact]
    public void BaseMemoryStaysAsLongAsItsVm()
    {
        var vm = Vm((0, Page), (0x100000, Page));
        var failure = Assert.Throws<GuestMemoryException>(() => _regions[0].GetMmapRegion().Release(force: false));
        Assert.Equal(GuestMemoryError.RegionInUse, failure.Error);
        Assert.Contains($"VM {vm.Id}", failure.Message, StringComparison.Ordinal);
        // Nobody provides its pages: it is accessed as ever.
        Assert.False(_regions[0].GetMmapRegion().IsGuarded);
        Assert.False(_regions[0].GetMmapRegion().MayWait);
        _regions[0].GetMmapRegion().Release(force: true);
        Assert.Equal([1U], vm.Slots.Select(slot => slot.Slot));
        Assert.Equal(2U, Add(vm, 0x200000, Page));
        vm.Dispose();
        _regions[1].GetMmapRegion().Release(force: false);
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<SyscallException>(() => Add(vm, 0x300000, Page)).Error);
    }

    /// <summary>Removing a VM waits until its vCPUs have left the guest: until then its memory must stay.</summary>
    [GuestFact]
    public void BaseMemoryStaysUntilTheVcpusHaveStopped()
    {
        const int Rounds = 200;
        var early = 0;
        for (var round = 0; round < Rounds; round++)
        {
            using var guest = new TestGuest();
            guest.Load(TestGuest.LoopForEver);
            using var limit = new CancellationTokenSource(Host.Patience);
            var run = Task.Factory.StartNew(() => Record.Exception(() => guest.Vcpu.Run(limit.Token)), limit.Token, TaskCreationOptions.LongRunning, TaskScheduler.Default);
            var dispose = Task.Factory.StartNew(guest.Vm.Dispose, limit.Token, TaskCreationOptions.LongRunning, TaskScheduler.Default);
            while (Record.Exception(() => guest.Ram.GetMmapRegion().Release(force: false)) is { } refused) Assert.Equal(GuestMemoryError.RegionInUse, Assert.IsType<GuestMemoryException>(refused).Error);
            // The vCPU's state is unmapped when it has left the guest.
            if (File.ReadAllText("/proc/self/maps").Contains("kvm-vcpu", StringComparison.Ordinal)) early++;
            dispose.GetAwaiter().GetResult();
            Assert.Equal(GuestMemoryError.VmDisposed, Assert.IsType<GuestMemoryException>(run.GetAwaiter().GetResult()).Error);
        }

        Assert.True(early == 0, $"the memory was released {early} times of {Rounds} while a vCPU ran");
    }

    [KvmFact]
    public void UnalignedBaseMemoryIsRefused()
    {
        Assert.Equal(GuestMemoryError.UnalignedSize, Assert.Throws<GuestMemoryException>(() => Vm((0, 0x1800))).Error);
        _regions.Clear();
        Assert.Equal(GuestMemoryError.NotPageAligned, Assert.Throws<GuestMemoryException>(() => Vm((0x800, Page))).Error);
    }

    [KvmFact]
    public void V11_8_MsyncAndAdviceCheckTheirRange()
    {
        using var vm = Vm((0, Page));
        var slot = Add(vm, 0x100000, 4 * Page);
        vm.MsyncMemoryRegion(slot, Page, 0);
        vm.MsyncMemoryRegion(slot, 0, 4 * Page);
        foreach (var operation in (Action<uint, ulong, ulong>[])[vm.MsyncMemoryRegion, vm.MadvisePageoutMemoryRegion, vm.MadviseRemoveMemoryRegion])
        {
            Assert.Equal(Errno.EINVAL, ErrorOf(() => operation(slot, Page + 1, 0)));
            Assert.Equal(Errno.EFAULT, ErrorOf(() => operation(slot, Page, 4 * Page)));
            Assert.Equal(Errno.ENOENT, ErrorOf(() => operation(slot + 1, 0, Page)));
            operation(slot, Page, 2 * Page);
        }
    }

    [KvmFact]
    public void MadviseRemoveFreesTheFile()
    {
        using var vm = Vm((0, Page));
        using var memfd = Memfd.CreateSealed("test", 16 * (long)Page, 0);
        var mapping = SlotMapping.FromFile(memfd, 0, 16 * Page);
        Assert.Equal(16 * (int)Page, mapping.Memory.TryWrite(0, Enumerable.Repeat((byte)7, 16 * (int)Page).ToArray(), out _));
        Assert.Equal(16UL * 8, FileStatus.Get(memfd).stx_blocks);
        var slot = vm.AddMemoryRegion(new GuestAddress(0x100000), mapping, false, false, MemCacheType.CacheCoherent);
        vm.MadviseRemoveMemoryRegion(slot, 4 * Page, 8 * Page);
        Assert.Equal(8UL * 8, FileStatus.Get(memfd).stx_blocks);
        var bytes = new byte[2];
        mapping.Memory.TryRead(4 * Page - 1, bytes, out _);
        Assert.Equal([7, 0], bytes);
    }

    [KvmFact]
    public void AnInflatedBalloonFreesBaseMemory()
    {
        using var memfd = new GuestRegionMmap(new MmapRegionBuilder(16 * Page).WithMemfd().Build(), new GuestAddress(0x100000));
        using var anonymous = new GuestRegionMmap(new MmapRegionBuilder(16 * Page).Build(), new GuestAddress(0x200000));
        var memory = GuestMemoryMmap.FromRegions([memfd, anonymous]);
        using var vm = new KvmVm(memory);
        foreach (var region in memory.Regions)
        {
            memory.WriteExact(new GuestAddress(region.GuestAddress), Enumerable.Repeat((byte)9, 16 * (int)Page).ToArray());
            vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(region.GuestAddress + Page), 2 * Page));
            // Before it is read: that brings pages back.
            if (region == memfd) Assert.Equal(14UL * 8, FileStatus.Get(memfd.GetFileOffset()!.File).stx_blocks);
            Assert.Equal((9, 0, 0, 9), (At(0), At(Page), At(3 * Page - 1), At(3 * Page)));
            byte At(ulong offset) => memory.ReadObject<byte>(new GuestAddress(region.GuestAddress + offset));
        }

        vm.HandleBalloonEvent(BalloonEvent.Deflate(new GuestAddress(0x100000), Page));
        vm.HandleBalloonEvent(BalloonEvent.TargetReached(0));
        Assert.Equal(Errno.EIO, ErrorOf(() => vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x300000), Page))));
        Assert.Equal(Errno.EIO, ErrorOf(() => vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x100000), 17 * Page))));
        Assert.Equal(Errno.EINVAL, ErrorOf(() => vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x100800), Page))));
    }

    [KvmFact]
    public void V11_8_IoEventsOfEveryKindComeAndGo()
    {
        using var vm = Vm((0, Page));
        using var eventFd = EventFd.Create();
        (IoEventAddress Address, Datamatch Match)[] events =
        [
            (IoEventAddress.Pio(0xf4), Datamatch.AnyLength), (IoEventAddress.Mmio(0x1000), Datamatch.AnyLength),
            (IoEventAddress.Pio(0xc1), Datamatch.U8(0x7f)), (IoEventAddress.Pio(0xc2), Datamatch.U16(0x1337)),
            (IoEventAddress.Pio(0xc4), Datamatch.U32(0xdeadbeef)), (IoEventAddress.Pio(0xc8), Datamatch.U64(0xdeadbeefdeadbeef)),
        ];
        foreach (var (address, match) in events) vm.RegisterIoEvent(eventFd, address, match);
        Assert.Equal(Errno.EEXIST, ErrorOf(() => vm.RegisterIoEvent(eventFd, IoEventAddress.Pio(0xf4), Datamatch.AnyLength)));
        foreach (var (address, match) in events) vm.UnregisterIoEvent(eventFd, address, match);
        Assert.Equal(Errno.ENOENT, ErrorOf(() => vm.UnregisterIoEvent(eventFd, IoEventAddress.Pio(0xf4), Datamatch.AnyLength)));
        using var memfd = Memfd.CreateSealed("test", 1, 0);
        Assert.Equal(Errno.EINVAL, ErrorOf(() => vm.RegisterIoEvent(memfd, IoEventAddress.Pio(0xf4), Datamatch.AnyLength)));
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, 1)]
    [InlineData(8, 1)]
    [InlineData(100, 13)]
    public void V11_8_TheSizeOfADirtyLog(ulong pages, ulong bytes) => Assert.Equal(bytes, KvmVm.DirtyLogSize(pages * HostPage.Size));

    [Fact]
    public void V11_8_APartOfAPageCountsInADirtyLog() => Assert.Equal(2UL, KvmVm.DirtyLogSize(8 * HostPage.Size + 1));

    [KvmFact]
    public void AHundredVmsLeaveNothingBehind()
    {
        _regions.Add(new GuestRegionMmap(new MmapRegionBuilder(Page).Build(), new GuestAddress(0)));
        var memory = GuestMemoryMmap.FromRegions(_regions);
        int Left() => Directory.GetFiles("/proc/self/fd").Count(link => new FileInfo(link).LinkTarget is { } target && target.Contains("kvm", StringComparison.Ordinal));
        var before = Left();
        for (var i = 0; i < 100; i++)
        {
            using var vm = new KvmVm(memory);
            Add(vm, 0x100000, Page);
            if (Needs.Guest) vm.CreateVcpu();
        }

        Assert.InRange(Left(), 0, before);
        Assert.DoesNotContain("kvm-vcpu", File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
        _regions[0].GetMmapRegion().Release(force: false);
    }

    private KvmVm Vm(params (ulong Address, ulong Size)[] regions)
    {
        foreach (var (address, size) in regions) _regions.Add(new GuestRegionMmap(new MmapRegionBuilder(size).Build(), new GuestAddress(address)));
        return new KvmVm(GuestMemoryMmap.FromRegions(_regions));
    }

    private static uint Add(KvmVm vm, ulong address, ulong size, bool readOnly = false) =>
        vm.AddMemoryRegion(new GuestAddress(address), SlotMapping.Anonymous(size), readOnly, logDirtyPages: false, MemCacheType.CacheCoherent);

    /// <summary>Memory for an address that another slot overlaps.</summary>
    private static SlotMapping Added(KvmVm vm, ulong address)
    {
        Add(vm, address, Page);
        return SlotMapping.Anonymous(0x10 * Page);
    }

    private static int ErrorOf(Action action) => Assert.Throws<SyscallException>(action).ErrorCode;
}
