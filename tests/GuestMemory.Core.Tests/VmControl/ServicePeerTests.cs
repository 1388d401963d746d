using System.Diagnostics;
using System.Text;
using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>What peers of a service can do wrong: each has an answer or loses its tube, and the service goes on.</summary>
public sealed class ServicePeerTests : ServiceTest
{
    private const int SolSocket = 1, SoSndBufForce = 32;

    [Fact]
    public void APointerOfAnotherProcessIsRefused()
    {
        using var mapping = SlotMapping.Anonymous(0x1000);
        var source = new VmMemorySource.ExternalMapping(mapping.HostAddress, 0x1000);
        Assert.Equal(["Operation not permitted (os error 1)"], Errors(Client.Send(new VmMemoryRequest.RegisterMemory(source, To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent))));
        Assert.Empty(Vm.Calls);
        var (near, far) = Tube.Pair();
        Service.AddTube(far, remotePeer: false);
        using var local = new VmMemoryClient(near);
        Assert.Equal(Address, local.RegisterMemory(source, To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
        local.UnregisterMemory(Address);
    }

    [Theory]
    [InlineData("garbage", 0, "This is not the expected JSON")]
    [InlineData("{\"UnregisterMemory\":1", 0, "This is not the expected JSON")]
    [InlineData("\u0000\u0001", 3, "This is not the expected JSON")]
    [InlineData("{\"\\ud800\":1}", 0, "This is not the expected JSON")]
    [InlineData("{\"Exit\":null}", 0, "'Exit' is no VmMemoryRequest")]
    [InlineData("{\"IoEventRaw\":{\"event\":0,\"addr\":0,\"datamatch\":\"AnyLength\",\"register\":true}}", 0, "descriptor 0 is out of bounds: 0 came along")]
    [InlineData("{\"IoEventRaw\":{\"event\":1,\"addr\":0,\"datamatch\":\"AnyLength\",\"register\":true}}", 1, "descriptor 1 is out of bounds: 1 came along")]
    [InlineData("{\"BalloonTargetReached\":{\"size\":1}}", 33, "more than 32 descriptors")]
    [InlineData("{\"BalloonTargetReached\":{\"size\":1}}", 253, "more than 32 descriptors")]
    public void WhatIsWrongIsAnswered(string packet, int descriptors, string expected)
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
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
        Host.AssertNoneLeft(before);
        Client.BalloonTargetReached(1);
        Assert.Equal(2, Service.ConnectionCount);
    }

    /// <summary>Quoted in the answer, each of these would become six characters.</summary>
    [Fact]
    public void ALongNameIsAnswered()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        Raw(peer, $"{{\"{new string('\'', 180_000)}\":1}}", 0);
        Assert.InRange(Assert.Single(Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse))).Length, 100, 2000);
    }

    [Fact]
    public void V253DescriptorsAreTheKernelsLimit()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        Assert.Equal(-Errno.EINVAL, TrySend(peer, "1", 254));
        Client.BalloonTargetReached(1);
    }

    [Fact]
    public void APacketThatIsTooLargeIsAnswered()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        using (var socket = new System.Net.Sockets.Socket(new System.Net.Sockets.SafeSocketHandle(peer.Socket.Number, ownsHandle: false)))
        {
            // Root may have a larger buffer than net.core.wmem_max says.
            if (Needs.Root) socket.SetRawSocketOption(SolSocket, SoSndBufForce, BitConverter.GetBytes(4 << 20));
            else socket.SendBufferSize = 4 << 20;
            Assert.SkipUnless(socket.SendBufferSize > 2 * Tube.MaxPacketBytes, "needs root, or a sysctl net.core.wmem_max of at least 2 MiB, to send a packet that is too large");
        }

        Assert.Equal(Tube.MaxPacketBytes + 1, TrySend(peer, new string(' ', Tube.MaxPacketBytes + 1), 5));
        Assert.Contains("at most 1048576 are read", Assert.Single(Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse))), StringComparison.Ordinal);
        Raw(peer, "{\"BalloonTargetReached\":{\"size\":1}}", 0);
        Assert.Equal(VmMemoryResponse.Ok.Instance, peer.Receive(VmControlJson.Default.VmMemoryResponse));
    }

    /// <summary>Whatever is wrong with an MmapAndRegisterMemory, its packets are taken, and the next request is understood.</summary>
    [Fact]
    public void AFailedMmapLeavesNothingInTheTube()
    {
        using var service = StartPatient();
        using var client = new VmMemoryClient(Serve(service));
        var good = new VmMemoryFileMapping(Memfd, 0x1000, 0, 0);
        var many = Enumerable.Repeat(good, 300).ToList();
        AssertFails(client, new SharedMemory(Memfd, 0), Address, many, "Invalid argument (os error 22)", "mmap related system call failed: Invalid argument (os error 22)", "failed to build MemoryMapping from shared memory");
        AssertFails(client, Shared(), Address, [.. many[..299], good with { MemOffset = 0x10000 }], "requested memory out of range", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(client, Shared(), Address, [good with { MemOffset = 1 }], "requested memory is not page aligned", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(client, Shared(), Address, [good with { FileOffset = 1 }], "Invalid argument (os error 22)", "mmap related system call failed: Invalid argument (os error 22)", "failed to add fd mapping when handling mmap and register memory");
        AssertFails(client, Shared(), 0, many, "No space left on device (os error 28)", "failed to add memory region when handling mmap and register memory");
        AssertFails(client, new VmMemoryRequest.MmapAndRegisterMemory(Shared(), new VmMemoryDestination.ExistingAllocation(new Alloc.Anon(1), 0), 300) { FileMappings = many },
            "Invalid argument (os error 22)", "VM memory destination allocation fails when handling mmap and register memory");
    }

    [Theory]
    [InlineData("garbage", 0, "This is not the expected JSON")]
    [InlineData("[]", 0, "a packet has 0 file mappings, where 253 were announced")]
    [InlineData("[null]", 0, "a packet has 1 file mappings, where 253 were announced")]
    [InlineData("[{\"file\":7,\"length\":1,\"mem_offset\":0,\"file_offset\":0}]", 1, "out of bounds")]
    [InlineData("[]", 253, "a packet has 0 file mappings, where 253 were announced")]
    public void AWrongPacketOfMappingsIsAnsweredOnce(string packet, int descriptors, string expected)
    {
        using var service = StartPatient();
        using var peer = Serve(service);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 300), VmControlJson.Default.VmMemoryRequest);
        Raw(peer, packet, descriptors);
        peer.Send(Files(47), VmControlJson.Default.VmMemoryFileMappingArray, 47);
        var messages = Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse));
        Assert.Contains(expected, messages[0], StringComparison.Ordinal);
        Assert.Equal("get 300 FDs to be mapped", messages[1]);
        Raw(peer, "{\"BalloonTargetReached\":{\"size\":1}}", 0);
        Assert.Equal(VmMemoryResponse.Ok.Instance, peer.Receive(VmControlJson.Default.VmMemoryResponse));
        Assert.Empty(Vm.Slots);
    }

    [Fact]
    public void APeerThatVanishesBetweenItsPackets()
    {
        var before = Host.Resources();
        using (var peer = Tube.Connect(Folder["vm.sock"]))
        {
            peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 300), VmControlJson.Default.VmMemoryRequest);
            peer.Send(Files(253), VmControlJson.Default.VmMemoryFileMappingArray, 253);
        }

        Host.Until(() => Service.ErrorCount == 1 && Service.ConnectionCount == 1);
        Assert.Equal((1L, 1), (Service.ErrorCount, Service.ConnectionCount));
        Host.AssertNoneLeft(before);
        Assert.Empty(Vm.Slots);
        Client.BalloonTargetReached(1);
    }

    [Fact]
    public void APeerThatSendsNoMorePacketsLosesItsTube()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 1), VmControlJson.Default.VmMemoryRequest);
        Assert.Equal(["Resource temporarily unavailable (os error 11)", "get 1 FDs to be mapped"], Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse)));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
        Client.BalloonTargetReached(1);
        Assert.Equal(1, Service.ConnectionCount);
    }

    [Theory]
    [InlineData((ulong)VmMemoryContext.MaxFileMappings + 1)]
    [InlineData(ulong.MaxValue)]
    public void TooManyMappingsAreNotAwaited(ulong count)
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), count), VmControlJson.Default.VmMemoryRequest);
        Assert.Equal([$"{count} file mappings are more than 65536", $"get {count} FDs to be mapped"], Errors(peer.Receive(VmControlJson.Default.VmMemoryResponse)));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
    }

    [Fact]
    public void APeerThatTakesNoAnswersLosesItsTube()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        var request = Encoding.UTF8.GetBytes("{\"BalloonTargetReached\":{\"size\":1}}");
        var sent = 0L;
        while (sent < 1_000_000 && UnixSocket.TrySend(peer.Socket, request, []) > 0) sent++;
        Host.Until(() => Service.ConnectionCount == 1);
        Assert.InRange(sent, 1, 999_999);
        Assert.Equal(1, Service.ConnectionCount);
        Assert.NotNull(Service.Error);
        Client.BalloonTargetReached(1);
    }

    /// <summary>Nobody waits for a peer that takes its time, and stopping does not either.</summary>
    [Fact]
    public async Task ASlowPeerHoldsUpNobody()
    {
        var context = new VmMemoryContext(Vm, Context.Allocator) { FileMappingTimeout = TimeSpan.FromMinutes(10) };
        var before = Host.Resources();
        var service = VmMemoryService.Start(context, new VmMemoryServiceOptions());
        using (var slow = Serve(service))
        using (var slower = Serve(service))
        using (var other = new VmMemoryClient(Serve(service)))
        {
            foreach (var tube in new[] { slow, slower }) tube.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 300), VmControlJson.Default.VmMemoryRequest);
            for (var i = 0; i < 100; i++) other.UnregisterMemory(other.RegisterMemory(Memory(), To(Address), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent));
            Assert.True(context.Lock.TryEnter());
            context.Lock.Exit();
            slow.Send(Files(253), VmControlJson.Default.VmMemoryFileMappingArray, 253);
            for (var i = 0; i < 100; i++) other.BalloonTargetReached(1);
            slow.Send(Files(47), VmControlJson.Default.VmMemoryFileMappingArray, 47);
            Assert.Equal(new VmMemoryResponse.RegisterMemory(Address, 1), slow.Receive(VmControlJson.Default.VmMemoryResponse));
            other.UnregisterMemory(Address);
            Assert.Equal((302L, 0L), (service.RequestCount, service.ErrorCount));
            await Task.Run(service.Dispose).WaitAsync(Host.Patience);
            Assert.Equal(VmMemoryServiceState.Stopped, service.State);
        }

        Host.AssertNoneLeft(before);
    }

    /// <summary>The time is that of all packets together: who sends one now and then does not get more of it.</summary>
    [Fact]
    public void TheTimeForPacketsIsThatOfAllTogether()
    {
        var start = Stopwatch.GetTimestamp();
        using var peer = Tube.Connect(Folder["vm.sock"]);
        peer.Send(new VmMemoryRequest.MmapAndRegisterMemory(Shared(), To(Address), 253 * 250), VmControlJson.Default.VmMemoryRequest);
        var sent = 0;
        while (sent < 249 && Service.ErrorCount == 0)
        {
            // Less than the limit apart; far more than it altogether.
            try
            {
                peer.Send(Files(253), VmControlJson.Default.VmMemoryFileMappingArray, 253);
            }
            catch (GuestMemoryException exception) when (exception.Error == FailureKind.Disconnected)
            {
                break;
            }

            sent++;
            Thread.Sleep(50);
        }

        Host.Until(() => Service.ConnectionCount == 1);
        Assert.Equal((1L, 1), (Service.ErrorCount, Service.ConnectionCount));
        Assert.InRange(sent, 1, 248);
        Assert.True(Stopwatch.GetElapsedTime(start) >= Context.FileMappingTimeout);
        Assert.Empty(Vm.Slots);
        Client.BalloonTargetReached(1);
    }

    [Fact]
    public void AnEmptyPacketIsTheEndOfItsTube()
    {
        using var peer = Tube.Connect(Folder["vm.sock"]);
        Host.Until(() => Service.ConnectionCount == 2);
        Assert.Equal(0, TrySend(peer, "", 3));
        Assert.Equal(FailureKind.Disconnected, Assert.Throws<GuestMemoryException>(() => peer.Receive(VmControlJson.Default.VmMemoryResponse)).Error);
        Client.BalloonTargetReached(1);
        Assert.Equal(1, Service.ConnectionCount);
    }

    [OtherUserFact]
    public void OneFurtherUserMayConnect()
    {
        const string Request = "{\"RegisterMemory\":{\"source\":{\"SharedMemory\":{\"descriptor\":0,\"size\":4096}},\"dest\":{\"GuestPhysicalAddress\":1048576},\"prot\":{\"read\":true,\"write\":true},\"cache\":\"CacheCoherent\"}}";
        var peer = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "VmControl", "peer.c"), Folder["peer"]);
        Assert.Equal(0, FileStatus.TryChangeMode(Folder.Path, 0b111_001_001));
        File.WriteAllBytes(Folder["memory"], new byte[4096]);
        using var service = VmMemoryService.Start(Context, new VmMemoryServiceOptions { SocketPath = Folder["shared.sock"], AllowUser = ["65534"] });
        Assert.Equal((0, "{\"RegisterMemory\":{\"region_id\":1048576,\"slot\":1}}"), Compiler.Run(peer, "65534", Folder["shared.sock"], Request, Folder["memory"]));
        Assert.Equal((0, "\"Ok\""), Compiler.Run(peer, "0", Folder["shared.sock"], "{\"UnregisterMemory\":1048576}"));
        // The other socket is for this user alone, and this one for no third.
        Assert.Equal(Errno.EACCES, Compiler.Run(peer, "65534", Folder["vm.sock"], Request, Folder["memory"]).Code);
        Assert.Equal(Errno.EACCES, Compiler.Run(peer, "65533", Folder["shared.sock"], Request, Folder["memory"]).Code);
        Assert.Equal(0, FileStatus.TryChangeMode(Folder["shared.sock"], 0b110_110_110));
        Assert.NotEqual((0, "\"Ok\""), Compiler.Run(peer, "65533", Folder["shared.sock"], "{\"BalloonTargetReached\":{\"size\":1}}"));
        Host.Until(() => service.Error is not null);
        Assert.Contains("user 65533", service.Error, StringComparison.Ordinal);
        Assert.Equal((2L, 0L), (service.RequestCount, service.ErrorCount));
        Assert.Equal(FailureKind.UserNotFound, Assert.Throws<GuestMemoryException>(() => VmMemoryService.Start(Context, new VmMemoryServiceOptions { SocketPath = Folder["none.sock"], AllowUser = ["nobody-of-that-name"] })).Error);
        Assert.False(File.Exists(Folder["none.sock"]));
    }

    /// <summary>A service that waits for the packets of a request as long as a slow machine takes to send them.</summary>
    private VmMemoryService StartPatient() => VmMemoryService.Start(Context, new VmMemoryServiceOptions { FileMappingTimeout = Host.Patience });

    private void AssertFails(VmMemoryClient client, SharedMemory shared, ulong address, List<VmMemoryFileMapping> mappings, params string[] messages) =>
        AssertFails(client, new VmMemoryRequest.MmapAndRegisterMemory(shared, To(address), (ulong)mappings.Count) { FileMappings = mappings }, messages);

    private void AssertFails(VmMemoryClient client, VmMemoryRequest request, params string[] messages)
    {
        var before = Host.Resources();
        Assert.Equal(messages, Errors(client.Send(request)));
        client.BalloonTargetReached(1);
        Host.AssertNoneLeft(before);
        Assert.Empty(Vm.Slots);
    }
}
