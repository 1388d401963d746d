namespace GuestMemory.Core.Tests;

/// <summary>Requests through a service, on real KVM: what section 10 says where KVM itself says it, and a guest that sees what they do.</summary>
public sealed class KvmRequestTests : IDisposable
{
    private const ulong Address = 0x200000;
    private const ulong BarStart = 0x400000;
    private static readonly Alloc s_bar = new Alloc.PciBar(0, 3, 0, 2);
    private readonly TestFolder _folder = new();
    private readonly SafeDescriptor _file = Memfd.CreateSealed("test", 0x10000, 0);
    private readonly VmMemoryContext _context;
    private readonly VmMemoryService _service;
    private readonly VmMemoryClient _client;

    public KvmRequestTests()
    {
        var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AddressInterval(BarStart, 0x7fffff), HighMmio = new AddressInterval(1UL << 36, (1UL << 37) - 1) });
        allocator.LowMmio.Allocate(0x10000, s_bar, "bar");
        _context = new VmMemoryContext(Guest.Vm, allocator) { PreparesSharedMemory = true };
        _service = VmMemoryService.Start(_context, new VmMemoryServiceOptions { SocketPath = _folder["vm.sock"] });
        _client = VmMemoryClient.Connect(_folder["vm.sock"]);
    }

    private TestGuest Guest { get; } = new();

    public void Dispose()
    {
        _client.Dispose();
        _service.Dispose();
        Guest.Dispose();
        _file.Dispose();
        _folder.Dispose();
    }

    [GuestFact]
    public void TheGuestWritesAndTheHostReads()
    {
        Assert.Equal(Address, Register(Address, 0x2000));
        Guest.RunToEnd(TestGuest.Store64(Address + 0x1008, 0x1122334455667788));
        Assert.Equal(0x1122334455667788UL, ReadFile(0x1008));
        _client.UnregisterMemory(Address);
        Guest.Load(TestGuest.Store8(Address, 1), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 1, IsWrite: true, 1), Guest.Run());
    }

    [GuestFact]
    public void WhatIsReadOnlyExitsAsMmio()
    {
        Register(Address, 0x1000, MemoryProtection.Read);
        Guest.Load(TestGuest.Store32(Address + 8, 0xdeadbeef), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address + 8, 4, IsWrite: true, 0xdeadbeef), Guest.Run());
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        Assert.Equal(0UL, ReadFile(8));
    }

    [GuestFact]
    public void APreparedRegisterTakesMappingsWhileTheGuestRuns()
    {
        _client.PrepareSharedMemoryRegion(s_bar, MemCacheType.CacheCoherent);
        var id = _client.RegisterMemory(new VmMemorySource.Descriptor(_file, 0x1000, 0x1000), new VmMemoryDestination.ExistingAllocation(s_bar, 0x3000), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
        Assert.Equal(BarStart + 0x3000, id);
        Guest.RunToEnd(TestGuest.Store64(id, 77));
        Assert.Equal(77UL, ReadFile(0x1000));
        _client.UnregisterMemory(id);
        Fails(new VmMemoryRequest.PrepareSharedMemoryRegion(s_bar, MemCacheType.CacheCoherent), "File exists (os error 17)", "failed to prepare shared memory region");
        Fails(Request(new VmMemoryDestination.ExistingAllocation(s_bar, 0x10000), 0x1000), "Input/output error (os error 5)", "failed to add fd mapping when trying to map to prepared region");
    }

    [GuestFact]
    public void MappedFilesAreReadOnlyForTheGuest()
    {
        using var other = Memfd.CreateSealed("other", 0x1000, 0);
        _client.MmapAndRegisterMemory(Address, new SharedMemory(_file, 0x4000), [new(other, 0x1000, 0x2000, 0)]);
        Guest.Load(TestGuest.Store32(Address + 0x2000, 5), TestGuest.Hlt);
        Assert.Equal(KvmExitReason.Mmio, Guest.Run().Reason);
        _client.UnregisterMemory(Address);
        Assert.Single(Guest.Vm.Slots);
    }

    [GuestFact]
    public void TheGuestReadsWhatIsInMappedFiles()
    {
        using var other = Memfd.CreateSealed("other", 0x3000, 0);
        WriteFile(_file, 0x1008, 0x1111);
        WriteFile(other, 0x2010, 0x2222);
        WriteFile(other, 0, 0x3333);
        Assert.Equal(1U, _client.MmapAndRegisterMemory(Address, new SharedMemory(_file, 0x4000), [new(other, 0x1000, 0x2000, 0x2000), new(other, 0x1000, 0x3000, 0)]));
        ReadByGuest(Address + 0x1008, 0x1111);
        ReadByGuest(Address + 0x2010, 0x2222);
        ReadByGuest(Address + 0x3000, 0x3333);
        // A file is shared: what is written to it later is seen, too.
        WriteFile(other, 0x2010, 0x4444);
        ReadByGuest(Address + 0x2010, 0x4444);
        _client.UnregisterMemory(Address);

        void ReadByGuest(ulong address, ulong expected)
        {
            Guest.RunToEnd(TestGuest.LoadToRcx(address), TestGuest.StoreRcx(0x12000));
            Assert.Equal(expected, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
        }
    }

    [GuestFact]
    public void MappedFilesFailByTheErrorsOfKvm()
    {
        const string Busy = "failed to add memory region when handling mmap and register memory";
        Fails(Mmap(0x1000), "No space left on device (os error 28)", Busy);
        Fails(Mmap(Address + 1), "Invalid argument (os error 22)", Busy);
        Fails(Mmap(ulong.MaxValue - 0xfff), "Value too large for defined data type (os error 75)", Busy);
        Register(Address, 0x2000);
        Fails(Mmap(Address), "File exists (os error 17)", Busy);
        Assert.Equal(2, Guest.Vm.Slots.Count);

        VmMemoryRequest.MmapAndRegisterMemory Mmap(ulong address) => new(new SharedMemory(_file, 0x4000), To(address), 2) { FileMappings = [new(_file, 0x1000, 0, 0), new(_file, 0x1000, 0x1000, 0)] };
    }

    [GuestFact]
    public void WhereTheIommuRefusesTheSlotIsTakenBack()
    {
        using var iommu = new FakeIommu { Answer = new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.NoSuchDevice) };
        var context = new VmMemoryContext(Guest.Vm, _context.Allocator, iommu.Client);
        var request = Request(To(Address), 0x1000);
        Assert.Equal(["Unexpected virtio-iommu message response when registering memory: Ok(VfioResponse(NoSuchDevice))"], Assert.IsType<VmMemoryResponse.Err>(request.Execute(context, exposeWithViommu: true)).Messages);
        Assert.Single(Guest.Vm.Slots);
        iommu.Answer = new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.Ok);
        Assert.Equal(new VmMemoryResponse.RegisterMemory(Address, 1), request.Execute(context, exposeWithViommu: true));
        Assert.Equal(VmMemoryResponse.Ok.Instance, new VmMemoryRequest.UnregisterMemory(Address).Execute(context, exposeWithViommu: true));
        Assert.Single(Guest.Vm.Slots);
    }

    [GuestFact]
    public void AnUnregisterOfWhatTheVmHasLostFails()
    {
        Register(Address, 0x1000);
        Guest.Vm.RemoveMemoryRegion(1).Dispose();
        for (var i = 0; i < 2; i++) Fails(new VmMemoryRequest.UnregisterMemory(Address), "No such file or directory (os error 2)", "failed to remove memory region when unregistering dynamic mapping memory");
    }

    /// <summary>The host has the memory back, and the guest reads zero.</summary>
    [GuestTheory]
    [InlineData(true)]
    [InlineData(false)]
    public void FreedMemoryIsTheHostsAgainAndZeroForTheGuest(bool memfd)
    {
        const int MiB = 1 << 20, Size = 64 * MiB;
        var builder = new MmapRegionBuilder(Size);
        using var guest = new TestGuest(ram: (memfd ? builder.WithMemfd() : builder).Build());
        var ones = new byte[MiB];
        ones.AsSpan().Fill(1);
        for (var at = 0; at < Size; at += MiB) guest.Memory.WriteExact(new GuestAddress((ulong)at), ones);
        var (resident, blocks) = (Resident(memfd), Blocks());
        var request = new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(16 * MiB, 16 * MiB), new(40 * MiB, 16 * MiB)]);
        Assert.Equal(VmMemoryResponse.Ok.Instance, request.Execute(new VmMemoryContext(guest.Vm, _context.Allocator)));
        // Others of this process may grow and shrink a little meanwhile.
        Assert.InRange(resident - Resident(memfd), 28 * MiB, 36 * MiB);
        Assert.Equal(memfd ? 32 * MiB / 512 : 0, blocks - Blocks());

        guest.RunToEnd(TestGuest.LoadToRcx(16 * MiB), TestGuest.StoreRcx(0x12000), TestGuest.LoadToRcx(56 * MiB - 8), TestGuest.StoreRcx(0x12008),
            TestGuest.LoadToRcx(16 * MiB - 8), TestGuest.StoreRcx(0x12010), TestGuest.LoadToRcx(32 * MiB), TestGuest.StoreRcx(0x12018));
        Assert.Equal([0UL, 0UL, 0x0101010101010101UL, 0x0101010101010101UL], Enumerable.Range(0, 4).Select(i => guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000 + 8 * (ulong)i))));

        // Written anew, it is there again.
        guest.RunToEnd(TestGuest.Store64(16 * MiB, 77));
        Assert.Equal(77UL, guest.Memory.ReadObject<ulong>(new GuestAddress(16 * MiB)));

        long Blocks() => guest.Ram.GetFileOffset() is { } file ? (long)FileStatus.Get(file.File).stx_blocks : 0;

        static long Resident(bool shared)
        {
            var line = File.ReadLines("/proc/self/status").First(line => line.StartsWith(shared ? "RssShmem:" : "RssAnon:", StringComparison.Ordinal));
            return long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)[^2]) * 1024;
        }
    }

    [GuestFact]
    public void BalloonRequests()
    {
        _client.DynamicallyFreeMemoryRanges([new(0x10000, 0x1000)]);
        _client.DynamicallyReclaimMemoryRanges([new(0x10000, 0x1000)]);
        _client.BalloonTargetReached(0);
        const string Busy = "failed to handle the inflate balloon event when freeing memory ranges dynamically";
        Fails(new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(0x10000000, 0x1000)]), "Input/output error (os error 5)", Busy);
        Fails(new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(0x10800, 0x1000)]), "Invalid argument (os error 22)", Busy);
        // Those before the one that fails stay freed.
        Guest.Memory.WriteObject(new GuestAddress(0x10000), 5UL);
        Guest.Memory.WriteObject(new GuestAddress(0x12000), 5UL);
        Fails(new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(0x10000, 0x1000), new(TestGuest.RamSize, 0x1000), new(0x12000, 0x1000)]), "Input/output error (os error 5)", Busy);
        Assert.Equal((0UL, 5UL), (Guest.Memory.ReadObject<ulong>(new GuestAddress(0x10000)), Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000))));
    }

    [GuestFact]
    public void AStoreSignalsTheEvent()
    {
        using var notify = EventFd.Create();
        _client.RegisterIoEvent(notify, 0x300000, Datamatch.U32(5));
        Fails(new VmMemoryRequest.IoEventRaw(new IoEventUpdateRequest(notify, 0x300000, Datamatch.U32(5), Register: true)), "File exists (os error 17)", "failed to register IO event");
        Guest.RunToEnd(TestGuest.Store32(0x300000, 5));
        Assert.True(EventFd.Clear(notify));
        Guest.Load(TestGuest.Store32(0x300000, 6), TestGuest.Hlt);
        Assert.Equal(KvmExitReason.Mmio, Guest.Run().Reason);
        Assert.False(EventFd.Clear(notify));
        _client.UnregisterIoEvent(notify, 0x300000, Datamatch.U32(5));
        Fails(new VmMemoryRequest.IoEventRaw(new IoEventUpdateRequest(notify, 0x300000, Datamatch.U32(5), Register: false)), "No such file or directory (os error 2)", "failed to unregister IO event");
    }

    [GuestFact]
    public void V10_ResponsesOfKvm()
    {
        const string Busy = "failed to add memory region when registering memory";
        Fails(Request(To(0x1000), 0x1000), "No space left on device (os error 28)", Busy);
        Fails(Request(To(Address + 1), 0x1000), "Invalid argument (os error 22)", Busy);
        Fails(Request(To(ulong.MaxValue - 0xfff), 0x2000), "Value too large for defined data type (os error 75)", Busy);
        Fails(Request(new VmMemoryDestination.ExistingAllocation(new Alloc.PciBar(9, 9, 9, 9), 0), 0x1000), "Invalid argument (os error 22)", "VM memory destination allocation fails");
        Fails(new VmMemoryRequest.UnregisterMemory(Address), "can't find the memory region when unregistering memory");
        Fails(new VmMemoryRequest.PrepareSharedMemoryRegion(new Alloc.Anon(1), MemCacheType.CacheCoherent), "Invalid argument (os error 22)", "failed to prepare shared memory region");
        Register(Address, 0x2000);
        Fails(Request(To(Address + 0x1000), 0x1000), "File exists (os error 17)", Busy);
        Assert.Equal(2, Guest.Vm.Slots.Count);
    }

    [GuestFact]
    public void TenThousandRegistrationsLeaveNothing()
    {
        Cycle(10);
        var (before, maps) = (Host.Resources(), Mappings());
        Cycle(10_000);
        Host.AssertNoneLeft(before);
        Assert.Equal(maps, Mappings());
        Assert.Single(Guest.Vm.Slots);

        void Cycle(int rounds)
        {
            for (var i = 0; i < rounds; i++) _client.UnregisterMemory(Register(Address, 0x1000));
        }

        static int Mappings() => File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:test", StringComparison.Ordinal));
    }

    private ulong Register(ulong address, ulong size, MemoryProtection protection = MemoryProtection.ReadWrite) =>
        _client.RegisterMemory(new VmMemorySource.SharedMemory(new SharedMemory(_file, size)), To(address), protection, MemCacheType.CacheCoherent);

    private VmMemoryRequest.RegisterMemory Request(VmMemoryDestination destination, ulong size) =>
        new(new VmMemorySource.Descriptor(_file, 0, size), destination, MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);

    private void Fails(VmMemoryRequest request, params string[] messages) => Assert.Equal(messages, Assert.IsType<VmMemoryResponse.Err>(_client.Send(request)).Messages);

    private ulong ReadFile(int at)
    {
        using var handle = File.OpenHandle($"/proc/self/fd/{_file.Number}");
        var bytes = new byte[8];
        Assert.Equal(8, RandomAccess.Read(handle, bytes, at));
        return BitConverter.ToUInt64(bytes);
    }

    private static void WriteFile(SafeDescriptor file, int at, ulong value)
    {
        using var handle = File.OpenHandle($"/proc/self/fd/{file.Number}", FileMode.Open, FileAccess.Write);
        RandomAccess.Write(handle, BitConverter.GetBytes(value), at);
    }

    private static VmMemoryDestination.GuestPhysicalAddress To(ulong address) => new(address);
}
