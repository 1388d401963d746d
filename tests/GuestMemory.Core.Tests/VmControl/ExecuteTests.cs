using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>
/// crosvm-vm-control.md 3, 10 and 11.9: each branch with its response, on a fake VM (KVM's own are in KvmRequestTests).
/// </summary>
public sealed class ExecuteTests : IDisposable
{
    private const ulong BarStart = 0xd0000000;
    private static readonly Alloc s_bar = new Alloc.PciBar(0, 3, 0, 2);
    private static readonly Alloc s_other = new Alloc.PciBar(0, 4, 0, 0);
    private readonly FakeVm _vm = new();
    private readonly SystemAllocator _allocator = new(new SystemAllocatorConfig { LowMmio = new AddressInterval(BarStart, 0xdfffffff), HighMmio = new AddressInterval(1UL << 36, (1UL << 37) - 1) });
    private readonly SafeDescriptor _file = Memfd.CreateSealed("test", 0x10000, 0);
    private VmMemoryContext _context;

    public ExecuteTests()
    {
        _allocator.LowMmio.Allocate(0x10000, s_bar, "bar");
        _context = new VmMemoryContext(_vm, _allocator) { PreparesSharedMemory = true };
    }

    public void Dispose()
    {
        _vm.Dispose();
        _file.Dispose();
    }

    [Fact]
    public void PrepareReservesASlot()
    {
        Ok(Prepare(s_bar, MemCacheType.CacheNonCoherent));
        Assert.Equal(["add 0xd0000000 0x10000 ro=False log=False CacheNonCoherent"], _vm.Calls);
        Assert.Equal(new PreparedRegion(BarStart, 1), _context.RegionState.MappedRegions[s_bar]);
        Fails(Prepare(s_bar), "File exists (os error 17)", "failed to prepare shared memory region");
        Assert.Single(_vm.Slots);
    }

    [Fact]
    public void PrepareOfWhatIsNoRegister()
    {
        Fails(Prepare(new Alloc.Anon(1)), "Invalid argument (os error 22)", "failed to prepare shared memory region");
        Fails(Prepare(s_other), "Invalid argument (os error 22)", "failed to prepare shared memory region");
        Assert.Empty(_vm.Calls);
    }

    /// <summary>A register too large for a mapping, and one too large for this process.</summary>
    [Fact]
    public void PrepareOfWhatIsTooLarge()
    {
        var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AddressInterval(BarStart, 0xdfffffff), HighMmio = new AddressInterval(0, ulong.MaxValue) });
        allocator.HighMmio.AllocateAt(new AddressInterval(1UL << 60, (1UL << 60) + (1UL << 63) - 1), s_bar, "bar");
        allocator.HighMmio.AllocateAt(new AddressInterval(0, (1UL << 50) - 1), s_other, "other");
        _context = new VmMemoryContext(_vm, allocator) { PreparesSharedMemory = true };
        Fails(Prepare(s_bar), "Numerical result out of range (os error 34)", "failed to prepare shared memory region");
        Fails(Prepare(s_other), "Cannot allocate memory (os error 12)", "failed to prepare shared memory region");
        Assert.Empty(_vm.Calls);
        Assert.Empty(_context.RegionState.MappedRegions);
    }

    [Fact]
    public void PrepareIsNothingWhereTheHostSaysSo()
    {
        _context = new VmMemoryContext(_vm, _allocator) { PreparesSharedMemory = false };
        Ok(Prepare(s_bar));
        Ok(Prepare(new Alloc.Anon(1)));
        Assert.Empty(_vm.Calls);
        var expected = RuntimeInformation.ProcessArchitecture != Architecture.X64
            || (File.Exists("/sys/module/kvm/parameters/tdp_mmu") && File.ReadAllText("/sys/module/kvm/parameters/tdp_mmu").StartsWith('Y'));
        Assert.Equal(expected, new VmMemoryContext(_vm, _allocator).PreparesSharedMemory);
    }

    [Fact]
    public void PrepareBehindAnIommuIsAnError()
    {
        using var iommu = new FakeIommu();
        _context = new VmMemoryContext(_vm, _allocator, iommu.Client) { PreparesSharedMemory = true };
        Fails(new VmMemoryRequest.PrepareSharedMemoryRegion(s_bar, MemCacheType.CacheCoherent).Execute(_context, exposeWithViommu: true),
            "a shared memory region cannot be prepared for a device behind the virtio-iommu", "failed to prepare shared memory region");
    }

    [Fact]
    public void RegisterIntoAPreparedRegister()
    {
        Ok(Prepare(s_bar));
        Assert.Equal(new VmMemoryResponse.RegisterMemory(BarStart + 0x2000, 1), Register(Part(0x3000, 0x1000), At(s_bar, 0x2000)));
        Assert.Equal("map 1 0x2000 0x1000 from 0x3000 ReadWrite", _vm.Calls[^1]);
        Assert.Equal(new VmMemoryResponse.RegisterMemory(BarStart, 1), Register(Whole(0x2000), At(s_bar, 0), MemoryProtection.Read));
        Assert.Equal("map 1 0x0 0x2000 from 0x0 Read", _vm.Calls[^1]);
        Assert.Equal(new RegisteredMemory.FixedMapping(1, 0x2000, 0x1000), _context.RegionState.RegisteredMemory[BarStart + 0x2000]);
        Ok(Unregister(BarStart + 0x2000));
        Assert.Equal("unmap 1 0x2000 0x1000", _vm.Calls[^1]);
        Fails(Unregister(BarStart + 0x2000), "can't find the memory region when unregistering memory");
    }

    [Fact]
    public void RegisterIntoAPreparedRegisterFails()
    {
        const string Busy = "failed to add fd mapping when trying to map to prepared region";
        Ok(Prepare(s_bar));
        Fails(Register(new VmMemorySource.ExternalMapping(0, 0x1000), At(s_bar, 0)), "source VmMemorySource::ExternalMapping is not compatible with fixed mapping into prepared memory region");
        Fails(Register(Vulkan(), At(s_bar, 0)), "source VmMemorySource::Vulkan is not compatible with fixed mapping into prepared memory region");
        Fails(Register(Part(0, 0x1000), At(s_bar, 0x10000)), "Input/output error (os error 5)", Busy);
        Fails(Register(Part(0, 0x1000), At(s_bar, 1)), "Input/output error (os error 5)", Busy);
        Fails(Register(Part(1, 0x1000), At(s_bar, 0)), "Invalid argument (os error 22)", Busy);
        Fails(Register(Part(ulong.MaxValue, 0x1000), At(s_bar, 0)), "Input/output error (os error 5)", Busy);
        Assert.Empty(_context.RegionState.RegisteredMemory);
    }

    [Theory]
    [InlineData(MemoryProtection.Read, true)]
    [InlineData(MemoryProtection.ReadWrite, false)]
    [InlineData(MemoryProtection.Write, false)]
    [InlineData(MemoryProtection.None, false)]
    public void RegisterIntoASlot(MemoryProtection protection, bool readOnly)
    {
        Assert.Equal(new VmMemoryResponse.RegisterMemory(0x100000, 1), Register(Part(0x1000, 0x2000), To(0x100000), protection));
        Assert.Equal([$"add 0x100000 0x2000 ro={readOnly} log=False CacheCoherent"], _vm.Calls);
        Assert.Equal(new RegisteredMemory.DynamicMapping(1), _context.RegionState.RegisteredMemory[0x100000]);
        Ok(Unregister(0x100000));
        Assert.Empty(_vm.Slots);
        Fails(Unregister(0x100000), "can't find the memory region when unregistering memory");
    }

    [Fact]
    public void RegisterIntoARegisterThatIsNotPrepared()
    {
        Assert.Equal(new VmMemoryResponse.RegisterMemory(BarStart + 0x1000, 1), Register(Whole(0x1000), At(s_bar, 0x1000)));
        const string Busy = "VM memory destination allocation fails";
        Fails(Register(Whole(0x1000), At(s_other, 0)), "Invalid argument (os error 22)", Busy);
        Fails(Register(Whole(0x1000), At(s_bar, 0x10000)), "Invalid argument (os error 22)", Busy);
        Fails(Register(Whole(0x1000), At(new Alloc.GpuRenderNode(), 0)), "Invalid argument (os error 22)", Busy);
        Assert.Single(_vm.Slots);
    }

    [Fact]
    public void RegisterFails()
    {
        using var closed = new SafeDescriptor(9999);
        Fails(Register(new VmMemorySource.Descriptor(closed, 0, 0x1000), To(0x100000)), "Bad file descriptor (os error 9)", "gralloc mapping");
        Fails(Register(Part(0, 0), To(0x100000)), "Invalid argument (os error 22)", "gralloc mapping");
        Fails(Register(Part(ulong.MaxValue, 0x1000), To(0x100000)), "Invalid argument (os error 22)", "gralloc mapping");
        Fails(Register(Part(0, ulong.MaxValue), To(0x100000)), "Cannot allocate memory (os error 12)", "gralloc mapping");
        Fails(Register(Vulkan(), To(0x100000)), "vulkan mapping is not supported without GPU feature", "gralloc mapping");
        Fails(Register(new VmMemorySource.ExternalMapping(1, 0x1000), To(0x100000)), "Invalid argument (os error 22)", "gralloc mapping");
        const string Busy = "failed to add memory region when registering memory";
        Fails(Register(Whole(0x1000), To(0x1000)), "No space left on device (os error 28)", Busy);
        Fails(Register(Whole(0x1000), To(ulong.MaxValue - 0xfff)), "Value too large for defined data type (os error 75)", Busy);
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Register(Whole(0x1000), To(0x100000)));
        Fails(Register(Whole(0x1000), To(0x100000)), "File exists (os error 17)", Busy);
        Assert.Single(_vm.Slots);
        Assert.Single(_context.RegionState.RegisteredMemory);
    }

    [Fact]
    public void APointerIsForThisProcessAlone()
    {
        using var mapping = SlotMapping.Anonymous(0x1000);
        var request = new VmMemoryRequest.RegisterMemory(new VmMemorySource.ExternalMapping(mapping.HostAddress, 0x1000), To(0x100000), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
        Fails(request.Execute(_context, remotePeer: true), "Operation not permitted (os error 1)");
        Assert.Empty(_vm.Calls);
        Assert.Equal(new VmMemoryResponse.RegisterMemory(0x100000, 1), request.Execute(_context));
        Assert.Equal(mapping.HostAddress, _vm.Slots[1].Mapping.HostAddress);
        Ok(Unregister(0x100000));
        mapping.Pageout(0, 0x1000); // ENOMEM where it is not mapped any more.
    }

    [Fact]
    public void AnUnregisterThatFailsCanBeTriedAgain()
    {
        Ok(Prepare(s_bar));
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Register(Whole(0x1000), To(0x100000)));
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Register(Whole(0x1000), At(s_bar, 0)));
        _vm.Faults["remove"] = Errno.EIO;
        _vm.Faults["unmap"] = Errno.ENOMEM;
        Fails(Unregister(0x100000), "Input/output error (os error 5)", "failed to remove memory region when unregistering dynamic mapping memory");
        Fails(Unregister(BarStart), "Cannot allocate memory (os error 12)", "failed to remove memory mapping when unregistering fixed mapping memory");
        _vm.Faults.Clear();
        Ok(Unregister(0x100000));
        Ok(Unregister(BarStart));
        Assert.Empty(_context.RegionState.RegisteredMemory);
    }

    [Fact]
    public void DescriptorsBehindAnIommuAreMappedThere()
    {
        using var iommu = new FakeIommu();
        _context = new VmMemoryContext(_vm, _allocator, iommu.Client);
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Behind(Part(0, 0x2000), 0x100000));
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Behind(Whole(0x1000), 0x200000));
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Register(Part(0, 0x1000), To(0x300000)));
        Assert.Equal(["map 0x100000 0x100000 0x2000"], iommu.Asked);
        Assert.Equal([0x100000UL], iommu.Client.RegisteredMemory);
        Ok(new VmMemoryRequest.UnregisterMemory(0x200000).Execute(_context, exposeWithViommu: true));
        Ok(new VmMemoryRequest.UnregisterMemory(0x100000).Execute(_context, exposeWithViommu: true));
        Assert.Equal(["map 0x100000 0x100000 0x2000", "unmap 0x100000"], iommu.Asked);
        Assert.Empty(iommu.Client.RegisteredMemory);
    }

    [Fact]
    public void WhereTheIommuRefusesNothingIsRegistered()
    {
        using var iommu = new FakeIommu { Answer = new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.InvalidParam) };
        _context = new VmMemoryContext(_vm, _allocator, iommu.Client);
        Fails(Behind(Part(0, 0x1000), 0x100000), "Unexpected virtio-iommu message response when registering memory: Ok(VfioResponse(InvalidParam))");
        _vm.Faults["remove"] = Errno.EIO;
        iommu.Answer = VirtioIommuResponse.Ok.Instance;
        Fails(Behind(Part(0, 0x1000), 0x200000), "Unexpected virtio-iommu message response when registering memory: Ok(Ok)");
        _vm.Faults.Clear();
        Assert.Equal([0x200000UL], _vm.Slots.Values.Select(static slot => slot.Address));
        Assert.Empty(_context.RegionState.RegisteredMemory);
        Assert.Empty(iommu.Client.RegisteredMemory);
    }

    [Fact]
    public void AnIommuThatFailsToUnmapIsAskedAgain()
    {
        using var iommu = new FakeIommu();
        _context = new VmMemoryContext(_vm, _allocator, iommu.Client);
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Behind(Part(0, 0x1000), 0x100000));
        Assert.IsType<VmMemoryResponse.RegisterMemory>(Behind(Part(0, 0x1000), 0x200000));
        iommu.Answer = new VirtioIommuResponse.Err(Errno.ENOMEM);
        var unregister = new VmMemoryRequest.UnregisterMemory(0x100000);
        Fails(unregister.Execute(_context, exposeWithViommu: true), "Unexpected virtio-iommu message response when unregistering memory: Ok(Err(Error(12)))");
        Assert.Equal([0x200000UL], _vm.Slots.Values.Select(static slot => slot.Address));
        iommu.Answer = new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.Ok);
        Ok(unregister.Execute(_context, exposeWithViommu: true));
        Fails(unregister.Execute(_context, exposeWithViommu: true), "can't find the memory region when unregistering memory");
        iommu.Answer = null;
        var other = new VmMemoryRequest.UnregisterMemory(0x200000);
        Fails(other.Execute(_context, exposeWithViommu: true), "Unexpected virtio-iommu message response when unregistering memory: Ok(Err(Error(32)))");
        iommu.Dispose();
        Fails(other.Execute(_context, exposeWithViommu: true), "Unexpected virtio-iommu message response when unregistering memory: Ok(Err(Error(9)))");
    }

    /// <summary>An answer that came after its time limit is not the answer to the next command.</summary>
    [Fact]
    public void ALateAnswerOfTheIommuIsDropped()
    {
        var (device, client) = Tube.Pair();
        using (device)
        using (client)
        {
            client.SetReceiveTimeout(TimeSpan.FromMilliseconds(20));
            _context = new VmMemoryContext(_vm, _allocator, new VmMemoryRequestIommuClient(client));
            Fails(Behind(Part(0, 0x1000), 0x100000), "Unexpected virtio-iommu message response when registering memory: Ok(Err(Error(11)))");
            device.Send(new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.Ok), VmControlJson.Default.VirtioIommuResponse);
            device.Send(new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.InvalidParam), VmControlJson.Default.VirtioIommuResponse);
            Fails(Behind(Part(0, 0x1000), 0x200000), "Unexpected virtio-iommu message response when registering memory: Ok(VfioResponse(InvalidParam))");
            Assert.Empty(_vm.Slots);
        }
    }

    /// <summary>Mappings that are at hand need no tube; nothing of them is there where one fails.</summary>
    [Fact]
    public void MappingsThatAreAtHand()
    {
        VmMemoryResponse Mmap(VmMemoryDestination destination, ulong size, params VmMemoryFileMapping[] mappings) =>
            new VmMemoryRequest.MmapAndRegisterMemory(new SharedMemory(_file, size), destination, (ulong)mappings.Length) { FileMappings = mappings }.Execute(_context);

        var good = new VmMemoryFileMapping(_file, 0x1000, 0x1000, 0x2000);
        Assert.Equal(new VmMemoryResponse.RegisterMemory(BarStart, 1), Mmap(At(s_bar, 0), 0x4000, good, good with { MemOffset = 0 }));
        Assert.Equal(["add 0xd0000000 0x4000 ro=True log=False CacheCoherent"], _vm.Calls);
        Assert.Equal(new RegisteredMemory.DynamicMapping(1), _context.RegionState.RegisteredMemory[BarStart]);
        Ok(Unregister(BarStart));

        using var closed = new SafeDescriptor(9999);
        const string Mapping = "mmap related system call failed: ";
        Fails(Mmap(To(0x100000), 0, good), "Invalid argument (os error 22)", $"{Mapping}Invalid argument (os error 22)", "failed to build MemoryMapping from shared memory");
        const string Adding = "failed to add fd mapping when handling mmap and register memory";
        Fails(Mmap(To(0x100000), 0x4000, good, good with { File = closed }), "Bad file descriptor (os error 9)", $"{Mapping}Bad file descriptor (os error 9)", Adding);
        Fails(Mmap(To(0x100000), 0x4000, good with { FileOffset = 1 }), "Invalid argument (os error 22)", $"{Mapping}Invalid argument (os error 22)", Adding);
        Fails(Mmap(To(0x100000), 0x4000, good with { MemOffset = 1 }), "requested memory is not page aligned", Adding);
        Fails(Mmap(To(0x100000), 0x4000, good with { MemOffset = 0x4000 }), "requested memory out of range", Adding);
        Fails(Mmap(To(0x100000), 0x4000, good with { FileOffset = ulong.MaxValue }), "requested offset is out of range of off_t", Adding);
        // Upstream looks at the arena first, and at the alignment before the range.
        Fails(Mmap(To(0x100000), 0x4000, good with { MemOffset = 0x4000, FileOffset = ulong.MaxValue }), "requested memory out of range", Adding);
        Fails(Mmap(To(0x100000), 0x4000, good with { MemOffset = 0x4001 }), "requested memory is not page aligned", Adding);
        Fails(Mmap(At(s_other, 0), 0x4000, good), "Invalid argument (os error 22)", "VM memory destination allocation fails when handling mmap and register memory");
        Fails(Mmap(To(0x1000), 0x4000, good), "No space left on device (os error 28)", "failed to add memory region when handling mmap and register memory");
        Fails(new VmMemoryRequest.MmapAndRegisterMemory(new SharedMemory(_file, 0x4000), To(0x100000), 2).Execute(_context),
            "2 file mappings were announced, but there is no tube for them to come through", "get 2 FDs to be mapped");
        Assert.Empty(_vm.Slots);
        Assert.Empty(_context.RegionState.RegisteredMemory);
    }

    [Fact]
    public void BalloonEvents()
    {
        Ok(new VmMemoryRequest.DynamicallyFreeMemoryRanges([]).Execute(_context));
        Ok(new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(0x1000, 0x2000), new(0x8000, 0x1000)]).Execute(_context));
        Ok(new VmMemoryRequest.DynamicallyReclaimMemoryRanges([new(0x1000, 0x2000)]).Execute(_context));
        Ok(new VmMemoryRequest.BalloonTargetReached(0x3000).Execute(_context));
        Assert.Equal(["balloon Inflate 0x1000 0x2000", "balloon Inflate 0x8000 0x1000", "balloon Deflate 0x1000 0x2000", "balloon TargetReached 0x0 0x3000"], _vm.Calls);
        _vm.Calls.Clear();
        Fails(new VmMemoryRequest.DynamicallyFreeMemoryRanges([new(0x1000, 0x1000), new(0x20000, 0x1000), new(0x2000, 0x1000)]).Execute(_context),
            "Input/output error (os error 5)", "failed to handle the inflate balloon event when freeing memory ranges dynamically");
        Assert.Equal(2, _vm.Calls.Count);
        _vm.Faults["balloon"] = Errno.EINVAL;
        Fails(new VmMemoryRequest.DynamicallyReclaimMemoryRanges([new(0, 1)]).Execute(_context),
            "Invalid argument (os error 22)", "failed to handle the deflate balloon event when reclaiming memory ranges dynamically");
        Fails(new VmMemoryRequest.BalloonTargetReached(1).Execute(_context), "Invalid argument (os error 22)", "failed to handle the target reached balloon event");
    }

    [Fact]
    public void IoEvents()
    {
        using var notify = EventFd.Create();
        var request = new IoEventUpdateRequest(notify, 0x4000, Datamatch.U32(5), Register: true);
        Ok(new VmMemoryRequest.IoEventRaw(request).Execute(_context));
        Ok(new VmMemoryRequest.IoEventRaw(request with { Register = false }).Execute(_context));
        Assert.Equal(["register guest address 0x4000 4 5", "unregister guest address 0x4000 4 5"], _vm.Calls);
        _vm.Faults["register"] = Errno.EEXIST;
        _vm.Faults["unregister"] = Errno.ENOENT;
        Fails(new VmMemoryRequest.IoEventRaw(request).Execute(_context), "File exists (os error 17)", "failed to register IO event");
        Fails(new VmMemoryRequest.IoEventRaw(request with { Register = false }).Execute(_context), "No such file or directory (os error 2)", "failed to unregister IO event");
    }

    private VmMemoryResponse Prepare(Alloc alloc, MemCacheType cache = MemCacheType.CacheCoherent) => new VmMemoryRequest.PrepareSharedMemoryRegion(alloc, cache).Execute(_context);

    private VmMemoryResponse Register(VmMemorySource source, VmMemoryDestination destination, MemoryProtection protection = MemoryProtection.ReadWrite) =>
        new VmMemoryRequest.RegisterMemory(source, destination, protection, MemCacheType.CacheCoherent).Execute(_context);

    private VmMemoryResponse Behind(VmMemorySource source, ulong address) =>
        new VmMemoryRequest.RegisterMemory(source, To(address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent).Execute(_context, exposeWithViommu: true);

    private VmMemoryResponse Unregister(ulong id) => new VmMemoryRequest.UnregisterMemory(id).Execute(_context);

    private VmMemorySource.Descriptor Part(ulong offset, ulong size) => new(_file, offset, size);

    private VmMemorySource.SharedMemory Whole(ulong size) => new(new SharedMemory(_file, size));

    private VmMemorySource.Vulkan Vulkan() => new(_file, 0, 0, new byte[16], new byte[16], 0x1000);

    private static VmMemoryDestination.ExistingAllocation At(Alloc alloc, ulong offset) => new(alloc, offset);

    private static VmMemoryDestination.GuestPhysicalAddress To(ulong address) => new(address);

    private static void Ok(VmMemoryResponse response) => Assert.Equal(VmMemoryResponse.Ok.Instance, response);

    private static void Fails(VmMemoryResponse response, params string[] messages) => Assert.Equal(messages, Assert.IsType<VmMemoryResponse.Err>(response).Messages);
}
