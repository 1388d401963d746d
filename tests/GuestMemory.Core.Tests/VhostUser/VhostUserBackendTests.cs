using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>A back end that listens, with a disk: who is served, who is turned away, and what ends when.</summary>
public sealed class VhostUserBackendTests : IDisposable
{
    private const int Sectors = 256;
    private const uint Read = VirtioBlk.VIRTIO_BLK_T_IN;
    private const ulong Data = DiskGuest.Data;

    private readonly TestFolder _folder = new();
    private readonly SafeFileHandle _image;
    private readonly HostResources _before;
    private volatile HeldDiskIo? _held;

    public VhostUserBackendTests()
    {
        File.WriteAllBytes(_folder["disk"], [.. Enumerable.Range(0, Sectors).SelectMany(static sector => Enumerable.Repeat(Pattern(sector), 512))]);
        _image = File.OpenHandle(_folder["disk"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        _before = Host.Resources();
    }

    public void Dispose()
    {
        _image.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void ADiskIsServedUntilItsFrontEndGoes()
    {
        using (var device = new BlockDevice(_image, isReadOnly: false))
        {
            using var backend = Start(device);
            Assert.Equal((null, 0, null), (backend.FrontEndProcessId, backend.ConnectionCount, backend.Error));
            using (var front = Connect(backend))
            {
                Assert.Equal(Environment.ProcessId, backend.FrontEndProcessId);
                Assert.Equal(Size, backend.Memory.Size);
                Assert.Equal(0, front.Guest.Do(Read, 7, (Data, 512, true)));
                var bytes = new byte[512];
                backend.Memory.ReadExact(Data, bytes);
                Assert.All(bytes, static value => Assert.Equal(Pattern(7), value));
                Assert.Equal((ulong)Sectors, Capacity(front));
            }

            Host.Until(() => backend.FrontEndProcessId is null);
            Assert.Empty(backend.Memory.Regions);
            Assert.Equal((1, null), (backend.ConnectionCount, backend.Error));
        }

        Host.AssertNoneLeft(_before);
        Assert.False(File.Exists(_folder["s"]));
    }

    [Fact]
    public void ASecondFrontEndIsTurnedAway()
    {
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        using (var first = Connect(backend))
        {
            using (var second = new DiskFrontEnd(backend)) Host.Until(() => second.IsEnded);
            Assert.Contains($"process {Environment.ProcessId} is connected", backend.Error, StringComparison.Ordinal);
            Assert.Equal(0, first.Guest.Do(Read, 1, (Data, 512, true)));
        }

        using var third = Connect(backend);
        Assert.Equal(0, third.Guest.Do(Read, 2, (Data, 512, true)));
        Assert.Equal(2, backend.ConnectionCount);
    }

    [Fact]
    public void ASecondBackEndCannotHaveTheSocket()
    {
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        Assert.Equal(GuestMemoryError.SocketInUse, Assert.Throws<GuestMemoryException>(() => Start(device)).Error);
        Assert.Equal(GuestMemoryError.UserNotFound, Assert.Throws<GuestMemoryException>(() => VhostUserBackend.Start(_folder["other"], device, ["no-user-of-that-name"])).Error);
        Assert.False(File.Exists(_folder["other"]));
        using var front = Connect(backend);
    }

    /// <summary>A thread that is another user: it may reach the file of the socket, and is not served.</summary>
    [OtherUserFact]
    public void AnotherUserIsTurnedAway()
    {
        Assert.Equal(0, FileStatus.TryChangeMode(_folder.Path, 0b111_001_001));
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        Assert.Equal(0, FileStatus.TryChangeMode(_folder["s"], 0b110_110_110));
        Stress.RunAll(() =>
        {
            Capabilities.Drop(0, new UserAccount(65534, 65534, []), wholeProcess: false);
            using var peer = UnixSocket.Create(nonBlocking: false);
            Assert.Equal(0, UnixSocket.TryConnect(peer, _folder["s"]));
            Host.Until(() => UnixSocket.HasPeerEnded(peer));
        });
        Assert.Contains("user 65534 was refused", backend.Error, StringComparison.Ordinal);
        Assert.Equal(0, backend.ConnectionCount);
        using var front = Connect(backend);
    }

    /// <summary>The next front end comes while the disk works on the requests of one that has gone: it waits for their end.</summary>
    [Fact]
    public void AFrontEndThatGoesLeavesNothingUnderWay()
    {
        using var device = Slow();
        using var backend = Start(device);
        using var first = Connect(backend);
        using var end = ReleaseAtEnd();
        var held = Hold(first, 3);
        first.Disconnect();
        Host.Until(() => held.SawStop);
        using var second = new DiskFrontEnd(backend);
        second.Send(VhostUserRequest.GetFeatures);
        Assert.Equal(1, backend.ConnectionCount);
        held.Release();
        Assert.Equal(8, second.Reply(VhostUserRequest.GetFeatures).Length);
        Assert.Equal(2, backend.ConnectionCount);
        CheckRead(first, 3);
    }

    [Fact]
    public void TheStopWaitsForWhatIsUnderWay()
    {
        using var device = Slow();
        var backend = Start(device);
        using var front = Connect(backend);
        using var end = ReleaseAtEnd();
        var held = Hold(front, 3);
        var stopping = new Thread(backend.Dispose);
        stopping.Start();
        Host.Until(() => held.SawStop);
        Assert.Equal((true, 0), (stopping.IsAlive, (int)front.Guest.UsedIndex));
        held.Release();
        stopping.Join();
        CheckRead(front, 3);
        Assert.True(front.IsEnded);
    }

    [Fact]
    public void TheBaseIsToldWhenAllHasEnded()
    {
        using var device = Slow();
        using var backend = Start(device);
        using var front = Connect(backend);
        using var end = ReleaseAtEnd();
        var held = Hold(front, 3);
        front.Send(VhostUserRequest.GetVringBase, State(0, 0));
        Host.Until(() => held.SawStop);
        Assert.Equal(0, front.Guest.UsedIndex);
        held.Release();
        Assert.Equal(State(0, 3), front.Reply(VhostUserRequest.GetVringBase));
        CheckRead(front, 3);
    }

    /// <summary>The requests that are under way end in the memory in which they began.</summary>
    [Fact]
    public void MemoryIsTakenAwayWhenAllHasEnded()
    {
        using var device = Slow();
        using var backend = Start(device);
        using var front = Connect(backend);
        using var end = ReleaseAtEnd();
        var held = Hold(front, 3);
        using var other = CopyOfMemory(front);
        front.Send(VhostUserRequest.SetMemTable, Table(Region(0)), VhostUserHeader.NeedReply, other);
        Host.Until(() => held.SawStop);
        held.Release();
        Assert.Equal(0UL, BitConverter.ToUInt64(front.Reply(VhostUserRequest.SetMemTable)));
        CheckRead(front, 3);
    }

    [Theory]
    [InlineData(999)]
    [InlineData(DiskGuest.QueueSize)]
    public void AGuestThatBreaksItsVirtqueueEndsItsConnection(ushort head)
    {
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        using (var front = Connect(backend))
        {
            front.Guest.Offer(head);
            front.Guest.Kick();
            Host.Until(() => front.IsEnded);
            Host.Until(() => backend.Error is not null);
            Assert.Equal($"Virtqueue 0 is broken: a chain names descriptor {head} of {DiskGuest.QueueSize}.", backend.Error);
        }

        using var next = Connect(backend);
        Assert.Equal(0, next.Guest.Do(Read, 1, (Data, 512, true)));
    }

    /// <summary>A chain without a byte for the status, while other requests are under way.</summary>
    [Fact]
    public void WhatIsUnderWayEndsThoughTheVirtqueueIsBroken()
    {
        using var device = Slow();
        using var backend = Start(device);
        using var front = Connect(backend);
        using var end = ReleaseAtEnd();
        var held = Hold(front, 3);
        front.Memory.WriteObject<VringDesc>(16 * 60, new VringDesc { addr = Data, len = 16 });
        front.Guest.Offer(60);
        front.Guest.Kick();
        Host.Until(() => front.IsEnded);
        held.Release();
        Host.Until(() => backend.Error is not null);
        Assert.Contains("no byte for its status", backend.Error, StringComparison.Ordinal);
        CheckRead(front, 3);
    }

    /// <summary>A front end that makes its descriptor blocking and fills it does not hold up the disk, nor its stop.</summary>
    [Fact]
    public unsafe void ADescriptorThatIsFullHoldsUpNothing()
    {
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        using var front = Connect(backend);
        SharedEventFdTests.MakeBlocking(front.Call);
        var full = ulong.MaxValue - 1;
        Assert.Equal(sizeof(ulong), Interop.Descriptor.TryWrite(front.Call.Number, &full, sizeof(ulong)));
        for (var i = 0; i < 4; i++)
        {
            front.Guest.Put(i, Read, (ulong)i, (Data + (ulong)(i * 512), 512, true));
            front.Guest.Kick();
            Host.Until(() => front.Guest.UsedIndex == i + 1);
        }
    }

    /// <summary>
    /// What a back end leaves when it is killed: the memory and the inflight region as they are while requests are under way. Another back end over
    /// copies of them takes these requests up in their order, and then those that were not taken.
    /// </summary>
    [Fact]
    public void ABackEndGoesOnWhereAnotherWasKilled()
    {
        using var device = Slow();
        using var backend = Start(device);
        using var front = new DiskFrontEnd(backend);
        using var end = ReleaseAtEnd();
        front.Negotiate();
        front.Send(VhostUserRequest.GetInflightFd, Bytes(new VhostUserInflightPayload(0, 0, 1, DiskGuest.QueueSize)));
        var payload = MemoryMarshal.Read<VhostUserInflightPayload>(front.Reply(VhostUserRequest.GetInflightFd));
        Assert.Equal(new VhostUserInflightPayload(InflightQueue.BytesFor(DiskGuest.QueueSize), 0, 1, DiskGuest.QueueSize), payload);
        var inflight = Assert.Single(front.Received);
        Assert.NotEqual(0, Interop.Memfd.Seals(inflight) & Interop.Memfd.F_SEAL_SHRINK);
        front.Accepted(VhostUserRequest.SetInflightFd, Bytes(payload), inflight);
        front.Start();
        Assert.Equal(0, front.Guest.Do(Read, 0, (Data + 0x8000, 512, true)));
        foreach (var slot in new[] { 3, 1, 2 })
        {
            front.Guest.Put(slot, Read, (ulong)slot, (Data + (ulong)(slot * 512), 512, true));
            front.Guest.Kick();
            Host.Until(() => _held!.Begun[^1].Offset == (ulong)slot * 512);
        }

        // Without a kick it is not taken.
        front.Guest.Put(4, Read, 4, (Data + (4 * 512), 512, true));
        using var left = Copy(payload.MmapSize, inflight);
        HeldDiskIo second = null!;
        using var nextDevice = new BlockDevice(_image, isReadOnly: true) { IoFactory = (vring, stop) => second = new HeldDiskIo(new ThreadDiskIo(_image, vring.Kick, stop), vring.Kick, static _ => false) };
        using var next = VhostUserBackend.Start(_folder["next"], nextDevice, []);
        using var again = new DiskFrontEnd(next, CopyOfMemory(front));
        again.Negotiate();
        again.Accepted(VhostUserRequest.SetInflightFd, Bytes(payload), left);
        // QEMU knows the index of the used ring alone.
        again.Start(next: 1);
        Host.Until(() => again.Guest.UsedIndex == 5);
        Assert.Equal([3UL, 1, 2, 4], second.Begun.Select(static operation => operation.Offset / 512));
        Assert.Equal([0, 1, 2, 3, 4], again.Guest.Returned.Order().ToArray());
        Assert.True(EventFd.Clear(again.Call));
        again.Send(VhostUserRequest.GetVringBase, State(0, 0));
        Assert.Equal(State(0, 5), again.Reply(VhostUserRequest.GetVringBase));
        for (var slot = 1; slot < 5; slot++) Assert.Equal(Pattern(slot), again.Memory.ReadObject<byte>(Data + (ulong)(slot * 512)));
    }

    private static byte Pattern(int sector) => (byte)((sector % 251) + 1);

    /// <summary>The sectors that the disk tells.</summary>
    private static ulong Capacity(DiskFrontEnd front)
    {
        front.Send(VhostUserRequest.GetConfig, [.. Bytes(0, 8, 0), .. new byte[8]]);
        return BitConverter.ToUInt64(front.Reply(VhostUserRequest.GetConfig), 12);
    }

    private static void CheckRead(DiskFrontEnd front, int count)
    {
        Assert.Equal([.. Enumerable.Range(0, count)], front.Guest.Returned.Order().ToArray());
        for (var i = 0; i < count; i++) Assert.Equal(((byte)0, Pattern(i + 1)), (front.Guest.Status(i), front.Memory.ReadObject<byte>(Data + (ulong)(i * 512))));
    }

    private static SafeDescriptor Copy(ulong length, SafeDescriptor file)
    {
        var bytes = new byte[length];
        using (var from = Interop.Descriptor.Duplicate(file)) RandomAccess.Read(from, bytes, 0);
        return Filled(bytes);
    }

    private static SafeDescriptor CopyOfMemory(DiskFrontEnd front)
    {
        var bytes = new byte[Size];
        front.Memory.ReadExact(0, bytes);
        return Filled(bytes);
    }

    private static SafeDescriptor Filled(byte[] bytes)
    {
        var copy = Memfd((ulong)bytes.Length);
        using var to = Interop.Descriptor.Duplicate(copy);
        RandomAccess.Write(to, bytes, 0);
        return copy;
    }

    private VhostUserBackend Start(BlockDevice device) => VhostUserBackend.Start(_folder["s"], device, []);

    private static DiskFrontEnd Connect(VhostUserBackend backend)
    {
        var front = new DiskFrontEnd(backend);
        front.Negotiate();
        front.Start();
        return front;
    }

    /// <summary>A disk that keeps back what does not begin at its start.</summary>
    private BlockDevice Slow() => new(_image, isReadOnly: false)
    {
        IoFactory = (vring, stop) => _held = new HeldDiskIo(new ThreadDiskIo(_image, vring.Kick, stop), vring.Kick, static operation => operation.Offset > 0),
    };

    /// <summary>Has reads under way.</summary>
    private HeldDiskIo Hold(DiskFrontEnd front, int count)
    {
        for (var i = 0; i < count; i++) front.Guest.Put(i, Read, (ulong)(i + 1), (Data + (ulong)(i * 512), 512, true));
        front.Guest.Kick();
        Host.Until(() => _held?.HeldCount == count);
        return _held!;
    }

    /// <summary>A test that fails must not wait for what it keeps back.</summary>
    private Releasing ReleaseAtEnd() => new(this);

    private sealed class Releasing(VhostUserBackendTests test) : IDisposable
    {
        public void Dispose() => test._held?.Release();
    }
}
