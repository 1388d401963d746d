using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 8: the service and its client over a real socket, on a fake VM.</summary>
public sealed class ServiceTests : ServiceTest
{
    [Fact]
    public void EveryRequestOfTheClient()
    {
        var bar = new Alloc.PciBar(0, 3, 0, 2);
        Client.PrepareSharedMemoryRegion(bar, MemCacheType.CacheCoherent);
        Assert.Equal(0xd0001000UL, Client.RegisterMemory(new VmMemorySource.Descriptor(Memfd, 0, 0x1000), new VmMemoryDestination.ExistingAllocation(bar, 0x1000), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        Assert.Equal(Address, Client.RegisterMemory(Memory(), To(Address), MemoryProtection.Read, MemCacheType.CacheNonCoherent));
        Assert.Equal(3U, Client.MmapAndRegisterMemory(0x200000, new SharedMemory(Memfd, 0x2000), [new(Memfd, 0x1000, 0x1000, 0)]));
        Client.DynamicallyFreeMemoryRanges([new(0, 0x1000)]);
        Client.DynamicallyReclaimMemoryRanges([new(0, 0x1000)]);
        Client.BalloonTargetReached(5);
        using (var notify = EventFd.Create())
        {
            Client.RegisterIoEvent(notify, 0x4000, Datamatch.AnyLength);
            Client.UnregisterIoEvent(notify, 0x4000, Datamatch.AnyLength);
        }

        foreach (var id in new[] { 0xd0001000, Address, 0x200000UL }) Client.UnregisterMemory(id);
        var failure = Assert.Throws<GuestMemoryException>(() => Client.UnregisterMemory(Address));
        Assert.Equal(FailureKind.RequestFailed, failure.Error);
        Assert.Equal("can't find the memory region when unregistering memory", failure.Message);
        Assert.Equal("failed to add memory region when registering memory: No space left on device (os error 28)",
            Assert.Throws<GuestMemoryException>(() => Client.RegisterMemory(Memory(), To(0), MemoryProtection.Read, MemCacheType.CacheCoherent)).Message);
        Assert.Equal((14L, 2L, 1), (Service.RequestCount, Service.ErrorCount, Service.ConnectionCount));
        Assert.Null(Service.Error);
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
        var mappings = Enumerable.Range(0, count).Select(i => new VmMemoryFileMapping(Memfd, 0x1000, (ulong)(i % 16) * 0x1000, 0)).ToList();
        var before = Host.Resources();
        Assert.Equal(1U, Client.MmapAndRegisterMemory(Address, new SharedMemory(Memfd, 0x10000), mappings));
        Assert.Equal("add 0x100000 0x10000 ro=True log=False CacheCoherent", Vm.Calls[^1]);
        Client.UnregisterMemory(Address);
        Host.AssertNoneLeft(before);

        var (near, far) = Tube.Pair();
        using (near)
        using (var other = new VmMemoryClient(far))
        {
            var asked = Task.Run(() => other.MmapAndRegisterMemory(Address, new SharedMemory(Memfd, 0x10000), mappings));
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
    public void TenThousandRegistrationsLeaveNothing()
    {
        Cycle(100);
        var (before, maps) = (Host.Resources(), File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:test", StringComparison.Ordinal)));
        Cycle(10_000);
        Host.AssertNoneLeft(before);
        Assert.Equal(maps, File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:test", StringComparison.Ordinal)));
        Assert.Empty(Vm.Slots);
        Assert.Empty(Context.RegionState.RegisteredMemory);
        Assert.Equal((20_200L, 0L), (Service.RequestCount, Service.ErrorCount));

        void Cycle(int rounds)
        {
            for (var i = 0; i < rounds; i++) Client.UnregisterMemory(Client.RegisterMemory(Memory(), To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        }
    }

    [Fact]
    public void StoppingTakesEverythingAway()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.BalloonTargetReached(1), VmControlJson.Default.VmMemoryRequest);
        _ = peer.Receive(VmControlJson.Default.VmMemoryResponse);
        Assert.Equal(FailureKind.SocketInUse, Assert.Throws<GuestMemoryException>(() => VmMemoryService.Start(Context, new VmMemoryServiceOptions { SocketPath = Folder["vm.sock"] })).Error);
        Service.Stop();
        Assert.Equal(VmMemoryServiceState.Stopped, Service.State);
        Assert.False(File.Exists(Folder["vm.sock"]));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
        Assert.Throws<ObjectDisposedException>(() => Service.AddTube(peer));
        Host.Until(static () => Host.Threads("vm-memory-") == 0);
        Assert.Equal(0, Host.Threads("vm-memory-"));
        Service.Stop();
    }

    /// <summary>A directory that nobody may write any more keeps the socket, and ends nothing.</summary>
    [Fact]
    public void ASocketThatCannotBeTakenAwayIsLeft()
    {
        Assert.SkipUnless(TrySetImmutable(true), "needs root, chattr ('apt-get install e2fsprogs'), and a file system that knows 'chattr +i'");
        try
        {
            Service.Stop();
            Assert.Equal(VmMemoryServiceState.Stopped, Service.State);
            Assert.True(File.Exists(Folder["vm.sock"]));
        }
        finally
        {
            Assert.True(TrySetImmutable(false));
        }
    }

    /// <summary>An answer that comes too late is not taken for that to the next request.</summary>
    [Fact]
    public void AClientThatHasLeftARequestAsksNothingMore()
    {
        var (near, far) = Tube.Pair();
        using (near)
        using (var client = new VmMemoryClient(far))
        {
            far.SetReceiveTimeout(TimeSpan.FromMilliseconds(20));
            Assert.Equal(FailureKind.TubeTimeout, Assert.ThrowsAny<GuestMemoryException>(() => client.BalloonTargetReached(1)).Error);
            near.Send(VmMemoryResponse.Ok.Instance, VmControlJson.Default.VmMemoryResponse);
            Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => client.UnregisterMemory(1)).Error);
        }
    }

    /// <summary>A request that is larger than the buffers of sockets are at first.</summary>
    [Fact]
    public void ALargeRequestArrives()
    {
        var ranges = Enumerable.Range(0, 20_000).Select(static _ => new VmMemoryRange(0x1000, 0x1000)).ToArray();
        Assert.InRange(new VmMemoryRequest.DynamicallyFreeMemoryRanges(ranges).ToJson([]).Length, 220_000, 400_000);
        Client.DynamicallyFreeMemoryRanges(ranges);
        Assert.Equal(20_000, Vm.Calls.Count);
        // What is larger than any packet is not sent, and leaves the tube as it is.
        var failure = Assert.Throws<GuestMemoryException>(() => Client.DynamicallyFreeMemoryRanges([.. Enumerable.Repeat(new VmMemoryRange(0x1000, 0x1000), 90_000)]));
        Assert.Equal(FailureKind.PacketTooLarge, failure.Error);
        Client.BalloonTargetReached(1);
        Assert.Equal(20_001, Vm.Calls.Count);
    }

    /// <summary>More files than this process may open at first; and nothing of the limit is left changed.</summary>
    [Fact]
    public void TheLimitOfOpenFilesIsRaisedForMappings()
    {
        Assert.Equal(0, ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var before));
        var low = before with { rlim_cur = (ulong)Directory.GetFiles("/proc/self/fd").Length + 100 };
        Assert.InRange(before.rlim_max, low.rlim_cur + 400, ulong.MaxValue);
        Assert.Equal(0, ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, low));
        try
        {
            Client.MmapAndRegisterMemory(Address, Shared(), Files(300));
            Client.UnregisterMemory(Address);
            using (OpenFilesLimit.Raise())
            {
                OpenFilesLimit.Raise().Dispose();
                Assert.Equal(before.rlim_max, Current());
            }

            Assert.Equal(low.rlim_cur, Current());
        }
        finally
        {
            Assert.Equal(0, ResourceLimit.TrySet(ResourceLimit.RLIMIT_NOFILE, before));
        }

        static ulong Current()
        {
            Assert.Equal(0, ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var limit));
            return limit.rlim_cur;
        }
    }

    private bool TrySetImmutable(bool immutable)
    {
        if (!File.Exists("/usr/bin/chattr")) return false;
        using var chattr = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo("/usr/bin/chattr", [immutable ? "+i" : "-i", Folder.Path]) { RedirectStandardError = true, UseShellExecute = false });
        chattr!.WaitForExit();
        return chattr.ExitCode == 0;
    }
}
