namespace GuestMemory.Core.Tests;

/// <summary>The dirty log and the dirty ring, by a guest that really runs.</summary>
public sealed class KvmDirtyLogTests
{
    private const ulong Page = 0x1000;
    private const ulong Pages = 3000;
    private const ulong Address = 0x1_0000_0000;

    public static TheoryData<DirtyLogMode> Modes => [DirtyLogMode.ManualProtect, DirtyLogMode.InitiallySet, DirtyLogMode.Plain, DirtyLogMode.Ring];

    [GuestTheory]
    [MemberData(nameof(Modes))]
    public void ExactlyThePagesThatTheGuestWroteAreDirty(DirtyLogMode mode)
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = mode });
        var mapping = SlotMapping.Anonymous(200 * Page);
        var slot = guest.Vm.AddMemoryRegion(new GuestAddress(Address), mapping, readOnly: false, logDirtyPages: true, MemCacheType.CacheCoherent);
        if (mode == DirtyLogMode.InitiallySet) Assert.Equal(200, guest.Vm.GetDirtyBitmap(slot, clear: true).DirtyCount);
        Assert.Empty(Dirty(guest, slot));
        guest.RunToEnd([.. new ulong[] { 0, 1, 63, 64, 199 }.Select(page => TestGuest.Store8(Address + page * Page + 7, 1)), TestGuest.LoadToRcx(Address + 100 * Page)]);
        // What the host writes is not logged.
        mapping.Memory.TryWrite(50 * Page, [1], out _);
        Assert.Equal([0, 1, 63, 64, 199], Dirty(guest, slot));
        Assert.Equal([0, 1, 63, 64, 199], Dirty(guest, slot));
        Assert.Equal([0, 1, 63, 64, 199], Dirty(guest, slot, clear: true));
        Assert.Empty(Dirty(guest, slot));
        // Dirty again, and more on top of what was not taken.
        guest.RunToEnd(TestGuest.Store8(Address + 64 * Page, 2));
        Assert.Equal([64], Dirty(guest, slot));
        guest.RunToEnd(TestGuest.Store8(Address + 65 * Page, 2));
        Assert.Equal([64, 65], Dirty(guest, slot, clear: true));
        var bitmap = guest.Vm.GetDirtyBitmap(slot);
        Assert.Equal((Address, 200 * Page, Page, $"VM {guest.Vm.Id} slot {slot}"), (bitmap.StartAddress, bitmap.ByteSize, bitmap.PageSize, bitmap.Source));
    }

    [GuestTheory]
    [MemberData(nameof(Modes))]
    public void BaseMemoryIsLoggedWhereItIsAskedFor(DirtyLogMode mode)
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = mode, LogDirtyPages = true });
        guest.RunToEnd(TestGuest.Store8(0x18000, 1));
        guest.Vm.GetDirtyBitmap(0, clear: true);
        guest.RunToEnd(TestGuest.Store8(0x18000, 1), TestGuest.Store8(0x1F000, 1));
        Assert.Equal([0x18, 0x1F], Dirty(guest, 0).Where(page => page >= 0x10));
    }

    [GuestFact]
    public void AFullRingIsEmptiedWhileTheGuestRuns()
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = DirtyLogMode.Ring, DirtyRingEntries = 1024 });
        var slot = guest.Vm.AddMemoryRegion(new GuestAddress(Address), SlotMapping.Anonymous(2 * Pages * Page), readOnly: false, logDirtyPages: true, MemCacheType.CacheCoherent);
        // An exit a page: where ring 0 is emulated, KVM looks at the ring only then.
        guest.Load(WritePages(leave: true), TestGuest.Hlt);
        for (var i = 0UL; i < Pages; i++) Assert.Equal(new KvmExit(KvmExitReason.Io, 0x80, 1, IsWrite: true, 0x01), guest.Run() with { Value = 1 });
        Assert.Equal(KvmExitReason.Hlt, guest.Run().Reason);
        Assert.Equal(EveryOther, Dirty(guest, slot, clear: true));
        Assert.Empty(Dirty(guest, slot));
        // At most 1024 pages at each exit, and at the end: two exits at least.
        Assert.InRange(guest.Vcpu.DirtyRingFullExits, 2, (long)Pages);
    }

    /// <summary>
    /// A guest that never leaves by itself. KVM stops it in time where it runs on the processor; where KVM emulates its instructions
    /// (nested virtualization without hardware support), the ring runs over before.
    /// </summary>
    [GuestFact]
    public void ARingLosesNoPageSilently()
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = DirtyLogMode.Ring, DirtyRingEntries = 1024 });
        var slot = guest.Vm.AddMemoryRegion(new GuestAddress(Address), SlotMapping.Anonymous(2 * Pages * Page), readOnly: false, logDirtyPages: true, MemCacheType.CacheCoherent);
        guest.Load(WritePages(leave: false), TestGuest.Hlt);
        var pages = Array.Empty<long>();
        var failure = Record.Exception(() => guest.Run());
        // What it wrote after the last exit is looked at by the query.
        failure ??= Record.Exception(() => pages = [.. Dirty(guest, slot)]);
        if (failure is null)
        {
            Assert.InRange(guest.Vcpu.DirtyRingFullExits, 2, (long)Pages);
            Assert.Equal(EveryOther, pages);
            return;
        }

        // KVM stopped the guest too late, at its first exit or at a later one: said, and never fewer pages.
        Assert.Equal(GuestMemoryError.DirtyRingOverrun, Assert.IsType<GuestMemoryException>(failure).Error);
        Assert.Equal(GuestMemoryError.DirtyRingOverrun, Assert.Throws<GuestMemoryException>(() => guest.Vm.GetDirtyBitmap(slot)).Error);
    }

    [GuestFact]
    public void ASlotsMarksGoWithIt()
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = DirtyLogMode.Ring });
        for (var i = 0; i < 2; i++)
        {
            var slot = guest.Vm.AddMemoryRegion(new GuestAddress(Address), SlotMapping.Anonymous(4 * Page), readOnly: false, logDirtyPages: true, MemCacheType.CacheCoherent);
            Assert.Equal(1U, slot);
            Assert.Empty(Dirty(guest, slot));
            guest.RunToEnd(TestGuest.Store8(Address + Page, 1));
            guest.Vm.RemoveMemoryRegion(slot).Dispose();
        }
    }

    [GuestFact]
    public void MarksOutliveTheirVcpu()
    {
        using var guest = new TestGuest(new KvmVmOptions { DirtyLog = DirtyLogMode.Ring });
        var slot = guest.Vm.AddMemoryRegion(new GuestAddress(Address), SlotMapping.Anonymous(4 * Page), readOnly: false, logDirtyPages: true, MemCacheType.CacheCoherent);
        guest.RunToEnd(TestGuest.Store8(Address + Page, 1));
        guest.Vcpu.Dispose();
        guest.Vcpu.Dispose();
        Assert.Equal([1], Dirty(guest, slot));
    }

    [KvmFact]
    public void WhatIsNotLoggedIsAnError()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Page).Build(), new GuestAddress(0));
        using var vm = new KvmVm(GuestMemoryMmap.FromRegions([region]));
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => vm.GetDirtyBitmap(0)).Error);
        Assert.Equal(GuestMemoryError.SlotNotFound, Assert.Throws<GuestMemoryException>(() => vm.GetDirtyBitmap(1)).Error);
    }

    [KvmTheory]
    [InlineData(1000)]
    [InlineData(16)]
    [InlineData(131072)]
    public void RingsOfAnImpossibleSizeAreRefused(uint entries)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Page).Build(), new GuestAddress(0));
        var failure = Assert.Throws<GuestMemoryException>(() => new KvmVm(GuestMemoryMmap.FromRegions([region]), new KvmVmOptions { DirtyLog = DirtyLogMode.Ring, DirtyRingEntries = entries }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, failure.Error);
        region.GetMmapRegion().Release(force: false);
    }

    private static IEnumerable<long> EveryOther => Enumerable.Range(0, (int)Pages).Select(static i => 2L * i);

    /// <summary>Writes a byte to every other page of the slot.</summary>
    private static byte[] WritePages(bool leave) =>
    [
        0x48, 0xB8, 0, 0, 0, 0, 1, 0, 0, 0, // mov rax, 0x100000000
        0xB9, 0xB8, 0x0B, 0, 0, // mov ecx, 3000
        0xC6, 0x00, 0x01, // again: mov byte [rax], 1
        0x48, 0x05, 0x00, 0x20, 0x00, 0x00, // add rax, 8192
        .. leave ? [0xE6, 0x80] : new byte[] { 0x90, 0x90 }, // out 0x80, al; or nop; nop
        0xFF, 0xC9, // dec ecx
        0x75, 0xF1, // jnz again
    ];

    private static IEnumerable<long> Dirty(TestGuest guest, uint slot, bool clear = false)
    {
        var pages = new long[2 * Pages];
        return pages[..guest.Vm.GetDirtyBitmap(slot, clear).ListPages(pages)];
    }
}
