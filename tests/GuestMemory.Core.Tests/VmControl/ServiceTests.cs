using System.Runtime.InteropServices;
using System.Text;
using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 8: the service and its client over a real socket, on a fake VM; and what peers can do wrong.</summary>
public sealed class ServiceTests : IDisposable
{
    private const ulong Address = 0x100000;
    private readonly TestFolder _folder = new();
    private readonly FakeVm _vm = new();
    private readonly SafeDescriptor _file = Memfd.CreateSealed("test", 0x10000, 0);
    private readonly VmMemoryContext _context;
    private readonly VmMemoryService _service;
    private readonly VmMemoryClient _client;

    public ServiceTests()
    {
        var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AllocRange(0xd0000000, 0xdfffffff), HighMmio = new AllocRange(1UL << 36, (1UL << 37) - 1) });
        allocator.LowMmio.Allocate(0x10000, new Alloc.PciBar(0, 3, 0, 2), "bar");
        _context = new VmMemoryContext(_vm, allocator) { PreparesSharedMemory = true, FileMappingTimeout = TimeSpan.FromMilliseconds(200) };
        _service = VmMemoryService.Start(_context, new VmMemoryServiceOptions { SocketPath = _folder["vm.sock"] });
        _client = VmMemoryClient.Connect(_folder["vm.sock"]);
        Host.Until(() => _service.ConnectionCount == 1);
    }

    public void Dispose()
    {
        _client.Dispose();
        _service.Dispose();
        _vm.Dispose();
        _file.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void EveryRequestOfTheClient()
    {
        var bar = new Alloc.PciBar(0, 3, 0, 2);
        _client.PrepareSharedMemoryRegion(bar, MemCacheType.CacheCoherent);
        Assert.Equal(0xd0001000UL, _client.RegisterMemory(new VmMemorySource.Descriptor(_file, 0, 0x1000), new VmMemoryDestination.ExistingAllocation(bar, 0x1000), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        Assert.Equal(Address, _client.RegisterMemory(Memory(), To(Address), MemoryProtection.Read, MemCacheType.CacheNonCoherent));
        Assert.Equal(3U, _client.MmapAndRegisterMemory(0x200000, new SharedMemory(_file, 0x2000), [new(_file, 0x1000, 0x1000, 0)]));
        _client.DynamicallyFreeMemoryRanges([new(0, 0x1000)]);
        _client.DynamicallyReclaimMemoryRanges([new(0, 0x1000)]);
        _client.BalloonTargetReached(5);
        using (var notify = EventFd.Create())
        {
            _client.RegisterIoEvent(notify, 0x4000, Datamatch.AnyLength);
            _client.UnregisterIoEvent(notify, 0x4000, Datamatch.AnyLength);
        }

        foreach (var id in new[] { 0xd0001000, Address, 0x200000UL }) _client.UnregisterMemory(id);
        var failure = Assert.Throws<GuestMemoryException>(() => _client.UnregisterMemory(Address));
        Assert.Equal(FailureKind.RequestFailed, failure.Error);
        Assert.Equal("can't find the memory region when unregistering memory", failure.Message);
        Assert.Equal("failed to add memory region when registering memory: No space left on device (os error 28)",
            Assert.Throws<GuestMemoryException>(() => _client.RegisterMemory(Memory(), To(0), MemoryProtection.Read, MemCacheType.CacheCoherent)).Message);
        Assert.Equal((14L, 2L, 1), (_service.RequestCount, _service.ErrorCount, _service.ConnectionCount));
        Assert.Null(_service.Error);
    }

    /// <summary>crosvm-vm-control.md 11.9: mappings go in packets of up to 253.</summary>
    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, 1)]
    [InlineData(253, 1)]
    [InlineData(254, 2)]
    [InlineData(506, 2)]
    [InlineData(507, 3)]
    public async Task V11_9_Chunking(int count, int packets)
    {
        var mappings = Enumerable.Range(0, count).Select(i => new VmMemoryFileMapping(_file, 0x1000, (ulong)(i % 16) * 0x1000, 0)).ToList();
        var before = Host.Resources();
        Assert.Equal(1U, _client.MmapAndRegisterMemory(Address, new SharedMemory(_file, 0x10000), mappings));
        Assert.Equal("add 0x100000 0x10000 ro=True log=False CacheCoherent", _vm.Calls[^1]);
        _client.UnregisterMemory(Address);
        Assert.Equal(before, Host.Resources());

        var (near, far) = Tube.Pair();
        using (near)
        using (var other = new VmMemoryClient(far))
        {
            var asked = Task.Run(() => other.MmapAndRegisterMemory(Address, new SharedMemory(_file, 0x10000), mappings));
            using var request = near.Receive(32, CancellationToken.None);
            Assert.IsType<VmMemoryRequest.MmapAndRegisterMemory>(request.Read(VmControlJson.Default.VmMemoryRequest));
            var seen = 0;
            for (var left = count; left > 0; seen++)
            {
                using var packet = near.Receive(Math.Min(left, 253), CancellationToken.None);
                left -= packet.Read(VmControlJson.Default.VmMemoryFileMappingArray).Length;
            }

            near.Send(new VmMemoryResponse.RegisterMemory(Address, 7), VmControlJson.Default.VmMemoryResponse);
            Assert.Equal(7U, await asked);
            Assert.Equal(packets, seen);
        }
    }

    [Fact]
    public void APointerOfAnotherProcessIsRefused()
    {
        using var mapping = MemoryMapping.Anonymous(0x1000);
        var source = new VmMemorySource.ExternalMapping(mapping.HostAddress, 0x1000);
        Assert.Equal(["Operation not permitted (os error 1)"], Errors(_client.Send(new VmMemoryRequest.RegisterMemory(source, To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent))));
        Assert.Empty(_vm.Calls);
        var (near, far) = Tube.Pair();
        _service.AddTube(far, remotePeer: false);
        using var local = new VmMemoryClient(near);
        Assert.Equal(Address, local.RegisterMemory(source, To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        local.UnregisterMemory(Address);
    }

    [Theory]
    [InlineData("garbage", 0, "This is not the JSON")]
    [InlineData("{\"UnregisterMemory\":1", 0, "This is not the JSON")]
    [InlineData("\u0000\u0001", 3, "This is not the JSON")]
    [InlineData("{\"Exit\":null}", 0, "'Exit' is no VmMemoryRequest")]
    [InlineData("{\"IoEventRaw\":{\"event\":0,\"addr\":0,\"datamatch\":\"AnyLength\",\"register\":true}}", 0, "descriptor 0 is out of bounds: 0 came along")]
    [InlineData("{\"IoEventRaw\":{\"event\":1,\"addr\":0,\"datamatch\":\"AnyLength\",\"register\":true}}", 1, "descriptor 1 is out of bounds: 1 came along")]
    [InlineData("{\"BalloonTargetReached\":{\"size\":1}}", 33, "more than 32 descriptors")]
    [InlineData("{\"BalloonTargetReached\":{\"size\":1}}", 253, "more than 32 descriptors")]
    public void WhatIsWrongIsAnswered(string packet, int descriptors, string expected)
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        Raw(peer, packet, 0);
        _ = peer.Receive(VmControlJson.Default.VmMemoryResponse);
        var before = Host.Resources();
        for (var i = 0; i < 3; i++)
        {
            Raw(peer, packet, descriptors);
            Assert.Contains(expected, Assert.Single(Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse))), StringComparison.Ordinal);
        }

        Raw(peer, "{\"BalloonTargetReached\":{\"size\":1}}", 32);
        Assert.Equal(VmMemoryResponse.Ok.Instance, peer.Receive(VmControlJson.Default.VmMemoryResponse));
        Assert.Equal(before, Host.Resources());
        _client.BalloonTargetReached(1);
        Assert.Equal(2, _service.ConnectionCount);
    }

    [Fact]
    public void V253DescriptorsAreTheKernelsLimit()
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        Assert.Equal(-Errno.EINVAL, TrySend(peer, "1", 254));
        _client.BalloonTargetReached(1);
    }

    [Fact]
    public void APacketThatIsTooLargeIsAnswered()
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        // As far as net.core.wmem_max allows: where that is less than a packet of this size, the kernel refuses it.
        using (var socket = new System.Net.Sockets.Socket(new System.Net.Sockets.SafeSocketHandle(peer.Socket.Number, ownsHandle: false))) socket.SendBufferSize = 4 << 20;
        var sent = TrySend(peer, new string(' ', Tube.MaxPacketBytes + 1), 5);
        if (sent == -90)
        {
            Assert.InRange(int.Parse(File.ReadAllText("/proc/sys/net/core/wmem_max")), 0, Tube.MaxPacketBytes);
            return;
        }

        Assert.Equal(Tube.MaxPacketBytes + 1, sent);
        Assert.Contains("at most 1048576 are read", Assert.Single(Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse))), StringComparison.Ordinal);
        Raw(peer, "{\"BalloonTargetReached\":{\"size\":1}}", 0);
        Assert.Equal(VmMemoryResponse.Ok.Instance, peer.Receive(VmControlJson.Default.VmMemoryResponse));
    }

    /// <summary>Whatever is wrong with an MmapAndRegisterMemory, its packets are taken, and the next request is understood.</summary>
    [Fact]
    public void AFailedMmapLeavesNothingInTheTube()
    {
        var good = new VmMemoryFileMapping(_file, 0x1000, 0, 0);
        var many = Enumerable.Repeat(good, 300).ToList();
        AssertFails(new SharedMemory(_file, 0), Address, many, "Invalid argument (os error 22)", "failed to build MemoryMapping from shared memory");
        AssertFails(Shared(), Address, [.. many[..299], good with { MemOffset = 0x10000 }], "Invalid argument (os error 22)", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(Shared(), Address, [good with { MemOffset = 1 }], "Invalid argument (os error 22)", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(Shared(), Address, [good with { FileOffset = 1 }], "Invalid argument (os error 22)", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(Shared(), 0, many, "No space left on device (os error 28)", "failed to add memory region when handling mmap and register memory");
        AssertFails(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), new VmMemoryDestination.ExistingAllocation(new Alloc.Anon(1), 0), 300) { FileMappings = many },
            "Invalid argument (os error 22)", "VM memory destination allocation fails when handling mmap and register memory");
    }

    [Theory]
    [InlineData("garbage", 0, "This is not the JSON")]
    [InlineData("[]", 0, "a packet has 0 file mappings, where 253 were announced")]
    [InlineData("[null]", 0, "a packet has 1 file mappings, where 253 were announced")]
    [InlineData("[{\"file\":7,\"length\":1,\"mem_offset\":0,\"file_offset\":0}]", 1, "out of bounds")]
    [InlineData("[]", 253, "a packet has 0 file mappings, where 253 were announced")]
    public void AWrongPacketOfMappingsIsAnsweredOnce(string packet, int descriptors, string expected)
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 300), VmControlJson.Default.VmMemoryRequest);
        Raw(peer, packet, descriptors);
        peer.Send(Enumerable.Repeat(new VmMemoryFileMapping(_file, 0x1000, 0, 0), 47).ToArray(), VmControlJson.Default.VmMemoryFileMappingArray, 47);
        var messages = Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse));
        Assert.Contains(expected, messages[0], StringComparison.Ordinal);
        Assert.Equal("get 300 FDs to be mapped", messages[1]);
        Raw(peer, "{\"BalloonTargetReached\":{\"size\":1}}", 0);
        Assert.Equal(VmMemoryResponse.Ok.Instance, peer.Receive(VmControlJson.Default.VmMemoryResponse));
        Assert.Empty(_vm.Slots);
    }

    [Fact]
    public void APeerThatVanishesBetweenItsPackets()
    {
        var before = Host.Resources();
        using (var peer = Tube.Connect(_folder["vm.sock"]))
        {
            peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 300), VmControlJson.Default.VmMemoryRequest);
            peer.Send(Enumerable.Repeat(new VmMemoryFileMapping(_file, 0x1000, 0, 0), 253).ToArray(), VmControlJson.Default.VmMemoryFileMappingArray, 253);
        }

        Host.Until(() => _service.ErrorCount == 1 && _service.ConnectionCount == 1);
        Assert.Equal((1L, 1), (_service.ErrorCount, _service.ConnectionCount));
        Assert.Equal(before, Host.Resources());
        Assert.Empty(_vm.Slots);
        _client.BalloonTargetReached(1);
    }

    [Fact]
    public void APeerThatSendsNoMorePacketsLosesItsTube()
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 1), VmControlJson.Default.VmMemoryRequest);
        Assert.Equal(["Resource temporarily unavailable (os error 11)", "get 1 FDs to be mapped"], Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse)));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
        _client.BalloonTargetReached(1);
        Assert.Equal(1, _service.ConnectionCount);
    }

    [Theory]
    [InlineData((ulong)VmMemoryContext.MaxFileMappings + 1)]
    [InlineData(ulong.MaxValue)]
    public void TooManyMappingsAreNotAwaited(ulong count)
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), count), VmControlJson.Default.VmMemoryRequest);
        Assert.Equal([$"{count} file mappings are more than 65536", $"get {count} FDs to be mapped"], Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse)));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
    }

    [Fact]
    public void APeerThatTakesNoAnswersLosesItsTube()
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        var request = Encoding.UTF8.GetBytes("{\"BalloonTargetReached\":{\"size\":1}}");
        var sent = 0L;
        while (sent < 1_000_000 && UnixSocket.TrySend(peer.Socket, request, []) > 0) sent++;
        Host.Until(() => _service.ConnectionCount == 1);
        Assert.InRange(sent, 1, 999_999);
        Assert.Equal(1, _service.ConnectionCount);
        Assert.NotNull(_service.Error);
        _client.BalloonTargetReached(1);
    }

    [Fact]
    public void TenThousandRegistrationsLeaveNothing()
    {
        Cycle(100);
        var (before, maps) = (Host.Resources(), File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:test", StringComparison.Ordinal)));
        Cycle(10_000);
        Assert.Equal(before, Host.Resources());
        Assert.Equal(maps, File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:test", StringComparison.Ordinal)));
        Assert.Empty(_vm.Slots);
        Assert.Empty(_context.RegionState.RegisteredMemory);
        Assert.Equal((20_200L, 0L), (_service.RequestCount, _service.ErrorCount));

        void Cycle(int rounds)
        {
            for (var i = 0; i < rounds; i++) _client.UnregisterMemory(_client.RegisterMemory(Memory(), To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        }
    }

    [Fact]
    public void StoppingTakesEverythingAway()
    {
        using var peer = Tube.Connect(_folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.BalloonTargetReached(1), VmControlJson.Default.VmMemoryRequest);
        _ = peer.Receive(VmControlJson.Default.VmMemoryResponse);
        Assert.Equal(FailureKind.SocketInUse, Assert.Throws<GuestMemoryException>(() => VmMemoryService.Start(_context, new VmMemoryServiceOptions { SocketPath = _folder["vm.sock"] })).Error);
        _service.Stop();
        Assert.Equal(VmMemoryServiceState.Stopped, _service.State);
        Assert.False(File.Exists(_folder["vm.sock"]));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
        Assert.Throws<ObjectDisposedException>(() => _service.AddTube(peer));
        Host.Until(static () => Host.Threads("vm-memory-") == 0);
        Assert.Equal(0, Host.Threads("vm-memory-"));
        _service.Stop();
    }

    [Fact]
    public async Task AServiceThatWaitsForPacketsCanBeStopped()
    {
        var context = new VmMemoryContext(_vm, _context.Allocator) { FileMappingTimeout = TimeSpan.FromMinutes(10) };
        var (near, far) = Tube.Pair();
        using (near)
        {
            var service = VmMemoryService.Start(context, new VmMemoryServiceOptions());
            service.AddTube(far);
            near.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 1), VmControlJson.Default.VmMemoryRequest);
            Host.Until(() => !context.Lock.TryEnter() || Leave());
            await Task.Run(service.Dispose).WaitAsync(TimeSpan.FromSeconds(5));
            Assert.Equal(VmMemoryServiceState.Stopped, service.State);
        }

        bool Leave()
        {
            context.Lock.Exit();
            return false;
        }
    }

    private void AssertFails(SharedMemory shared, ulong address, List<VmMemoryFileMapping> mappings, params string[] messages) =>
        AssertFails(new VmMemoryRequest.MmapAndRegisterMemory(shared, To(address), (ulong)mappings.Count) { FileMappings = mappings }, messages);

    private void AssertFails(VmMemoryRequest request, params string[] messages)
    {
        var before = Host.Resources();
        Assert.Equal(messages, Errors(_client.Send(request)));
        _client.BalloonTargetReached(1);
        Assert.Equal(before, Host.Resources());
        Assert.Empty(_vm.Slots);
    }

    private SharedMemory Shared() => new(_file, 0x10000);

    private VmMemorySource.SharedMemory Memory() => new(new SharedMemory(_file, 0x1000));

    private static VmMemoryDestination.GuestPhysicalAddress To(ulong address) => new(address);

    private static IReadOnlyList<string> Errors(VmMemoryResponse response) => Assert.IsType<VmMemoryResponse.Err>(response).Messages;

    private void Raw(Tube peer, string packet, int descriptors) => Assert.Equal(Encoding.UTF8.GetByteCount(packet), TrySend(peer, packet, descriptors));

    private nint TrySend(Tube peer, string packet, int descriptors) => UnixSocket.TrySend(peer.Socket, Encoding.UTF8.GetBytes(packet), [.. Enumerable.Repeat(_file.Number, descriptors)]);
}
