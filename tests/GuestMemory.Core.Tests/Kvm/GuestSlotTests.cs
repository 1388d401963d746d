namespace GuestMemory.Core.Tests;

/// <summary>Slots and eventfds, by a guest that really runs.</summary>
public sealed class GuestSlotTests : IDisposable
{
    private const ulong Page = 0x1000;
    private const ulong Address = 0x1_0000_0000;
    private TestGuest Guest { get; } = new();

    public void Dispose() => Guest.Dispose();

    [GuestFact]
    public void TheHostReadsWhatTheGuestWritesIntoAnAddedRegion()
    {
        using var memfd = Memfd.CreateSealed("test", 4 * (long)Page, 0);
        var mapping = SlotMapping.FromFile(memfd, Page, 2 * Page);
        Add(mapping, readOnly: false);
        Guest.RunToEnd(TestGuest.Store64(Address + Page + 8, 0x0123456789ABCDEF));
        var bytes = new byte[8];
        Assert.Equal(8, mapping.Memory.TryRead(Page + 8, bytes, out _));
        Assert.Equal(0x0123456789ABCDEFUL, BitConverter.ToUInt64(bytes));
        // And everybody else who has the file.
        using var other = SlotMapping.FromFile(memfd, 2 * Page, Page);
        other.Memory.TryRead(8, bytes, out _);
        Assert.Equal(0x0123456789ABCDEFUL, BitConverter.ToUInt64(bytes));
    }

    [GuestFact]
    public void AWriteToReadOnlyMemoryIsMmio()
    {
        var mapping = SlotMapping.Anonymous(Page);
        mapping.Memory.TryWrite(0x10, [0x42], out _);
        Add(mapping, readOnly: true);
        Guest.Load(TestGuest.Store8(Address + 0x10, 0x77), TestGuest.LoadToRcx(Address + 0x10), TestGuest.StoreRcx(0x12000), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address + 0x10, 1, IsWrite: true, 0x77), Guest.Run());
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        // It reads without leaving the guest, and what was written did not arrive.
        Assert.Equal(0x42UL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }

    [GuestFact]
    public void ARegionThatIsRemovedIsMmioAgain()
    {
        var slot = Add(SlotMapping.Anonymous(Page), readOnly: false);
        Guest.RunToEnd(TestGuest.Store8(Address, 1));
        Guest.Vm.RemoveMemoryRegion(slot).Dispose();
        Guest.Load(TestGuest.Store8(Address, 2));
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 1, IsWrite: true, 2), Guest.Run());
    }

    [GuestFact]
    public void FilesComeAndGoInAnArena()
    {
        using var memfd = Memfd.CreateSealed("test", 4 * (long)Page, 0);
        using var view = SlotMapping.FromFile(memfd, 0, 4 * Page);
        var arena = new SlotArena(16 * Page);
        var slot = Add(arena, readOnly: false);
        Guest.Vm.AddFdMapping(slot, 4 * Page, 2 * Page, memfd, Page, MemoryProtection.ReadWrite);
        Guest.RunToEnd(TestGuest.Store32(Address + 4 * Page, 0xCAFE), TestGuest.Store32(Address + 5 * Page, 0xBEEF));
        Assert.Equal((0xCAFE, 0xBEEF), (Word(view, Page), Word(view, 2 * Page)));

        Guest.Vm.RemoveMapping(slot, 4 * Page, Page);
        Assert.Equal((0, 0xBEEF), (Word(arena, 4 * Page), Word(arena, 5 * Page)));
        Assert.Equal(0xCAFE, Word(view, Page));
        // The guest reads zero there, where it read the file before.
        Guest.RunToEnd(TestGuest.LoadToRcx(Address + 4 * Page), TestGuest.StoreRcx(0x12000));
        Assert.Equal(0UL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }

    [GuestFact]
    public void ArenasAndMappingsFailByTheirErrors()
    {
        using var memfd = Memfd.CreateSealed("test", (long)Page, 0);
        using var closed = new SafeDescriptor(-1);
        var arena = Add(new SlotArena(4 * Page), readOnly: false);
        var single = Guest.Vm.AddMemoryRegion(new GuestAddress(2 * Address), SlotMapping.Anonymous(4 * Page), false, false, MemCacheType.CacheCoherent);
        Assert.Equal(Errno.EINVAL, ErrorOf(() => Guest.Vm.AddFdMapping(99, 0, Page, memfd, 0, MemoryProtection.Read)));
        Assert.Equal(Errno.EINVAL, ErrorOf(() => Guest.Vm.RemoveMapping(99, 0, Page)));
        Assert.Equal(Errno.EIO, ErrorOf(() => Guest.Vm.AddFdMapping(single, 0, Page, memfd, 0, MemoryProtection.Read)));
        Assert.Equal(Errno.EIO, ErrorOf(() => Guest.Vm.RemoveMapping(single, 0, Page)));
        Assert.Equal(Errno.EIO, ErrorOf(() => Guest.Vm.AddFdMapping(arena, 1, Page, memfd, 0, MemoryProtection.Read)));
        Assert.Equal(Errno.EIO, ErrorOf(() => Guest.Vm.AddFdMapping(arena, Page, 4 * Page, memfd, 0, MemoryProtection.Read)));
        Assert.Equal(Errno.EIO, ErrorOf(() => Guest.Vm.AddFdMapping(arena, 0, Page, memfd, ulong.MaxValue, MemoryProtection.Read)));
        Assert.Equal(Errno.EBADF, ErrorOf(() => Guest.Vm.AddFdMapping(arena, 0, Page, closed, 0, MemoryProtection.Read)));
        Assert.Equal(Errno.EINVAL, ErrorOf(() => Guest.Vm.AddFdMapping(arena, 0, Page, memfd, 1, MemoryProtection.Read)));
    }

    [GuestFact]
    public void AStoreSignalsAnEventfdInsteadOfLeavingTheGuest()
    {
        using var any = EventFd.Create();
        using var matching = EventFd.Create();
        using var port = EventFd.Create();
        Guest.Vm.RegisterIoEvent(any, IoEventAddress.Mmio(Address), Datamatch.AnyLength);
        Guest.Vm.RegisterIoEvent(matching, IoEventAddress.Mmio(Address + 8), Datamatch.U32(5));
        Guest.Vm.RegisterIoEvent(port, IoEventAddress.Pio(0xC1), Datamatch.U8(0x7F));
        Guest.RunToEnd(TestGuest.Store8(Address, 1), TestGuest.Store32(Address, 2), TestGuest.Store64(Address, 3), TestGuest.Store32(Address + 8, 5), TestGuest.Out(0xC1, 0x7F, 1));
        Assert.Equal((3UL, 1UL, 1UL), (Count(any), Count(matching), Count(port)));

        // What does not match leaves the guest as ever.
        Guest.Load(TestGuest.Store32(Address + 8, 6), TestGuest.Store16(Address + 8, 5), TestGuest.Out(0xC1, 0x7E, 1), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address + 8, 4, IsWrite: true, 6), Guest.Run());
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address + 8, 2, IsWrite: true, 5), Guest.Run());
        Assert.Equal(new KvmExit(KvmExitReason.Io, 0xC1, 1, IsWrite: true, 0x7E), Guest.Run());
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        Assert.Equal((0UL, 0UL, 0UL), (Count(any), Count(matching), Count(port)));

        Guest.Vm.UnregisterIoEvent(any, IoEventAddress.Mmio(Address), Datamatch.AnyLength);
        Guest.Load(TestGuest.Store8(Address, 9));
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 1, IsWrite: true, 9), Guest.Run());
    }

    [GuestFact]
    public void FreedMemoryReadsAsZeroForTheGuest()
    {
        Guest.Memory.WriteObject(new GuestAddress(0x10000), 0x1122334455667788UL);
        Guest.Vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x10000), Page));
        Guest.RunToEnd(TestGuest.LoadToRcx(0x10000), TestGuest.StoreRcx(0x12000));
        Assert.Equal(0UL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }

    private uint Add(SlotMemory mapping, bool readOnly) => Guest.Vm.AddMemoryRegion(new GuestAddress(Address), mapping, readOnly, logDirtyPages: false, MemCacheType.CacheCoherent);

    private static int Word(SlotMemory mapping, ulong offset)
    {
        var bytes = new byte[4];
        Assert.Equal(4, mapping.Memory.TryRead(offset, bytes, out _));
        return BitConverter.ToInt32(bytes);
    }

    private static unsafe ulong Count(SafeDescriptor eventFd)
    {
        using var lease = new DescriptorLease(eventFd);
        ulong count;
        return Descriptor.TryRead(lease.Number, &count, 8) == 8 ? count : 0;
    }

    private static int ErrorOf(Action action) => Assert.Throws<SyscallException>(action).ErrorCode;
}
