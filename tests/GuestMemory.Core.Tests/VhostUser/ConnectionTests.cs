using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>vhost-user-log.md, section 3: what a back end does with the requests of a front end, in order.</summary>
public sealed class ConnectionTests
{
    [Fact]
    public void FeaturesAreOfferedAndAccepted()
    {
        using var front = new FrontEnd();
        var offered = front.Ask(VhostUserRequest.GetFeatures);
        Assert.Equal(front.Device.Features | LogAll | Protocol, offered);
        Assert.Equal(VhostUserPostcopy.IsSupported ? 0x930BUL : 0x920BUL, front.Ask(VhostUserRequest.GetProtocolFeatures));
        front.Send(VhostUserRequest.SetProtocolFeatures, Bytes(0x920BUL));
        front.Accepted(VhostUserRequest.SetFeatures, Bytes(Protocol | 0x40));
        Assert.Equal(Protocol | 0x40, front.Connection.Features);
        Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
        Assert.Equal(509UL, front.Ask(VhostUserRequest.GetMaxMemSlots));
        front.Refused(GuestMemoryError.FeatureMismatch, VhostUserRequest.SetFeatures, Bytes(Protocol | 0x20));
        Assert.Equal(Protocol | 0x40, front.Connection.Features);
        front.Refused(GuestMemoryError.FeatureMismatch, VhostUserRequest.SetProtocolFeatures, Bytes(0x10000UL));
    }

    [Fact]
    public void TheConfigurationIsRead()
    {
        using var front = Negotiated();
        front.Send(VhostUserRequest.GetConfig, [.. Bytes(8, 4, 0), 0, 0, 0, 0]);
        Assert.Equal([.. Bytes(8, 4, 0), 8, 9, 10, 11], front.Reply(VhostUserRequest.GetConfig));
        // Bytes that the device has not: a reply without content, also where an answer is asked for.
        front.Send(VhostUserRequest.GetConfig, [.. Bytes(62, 4, 0), 0, 0, 0, 0], VhostUserHeader.NeedReply);
        Assert.Empty(front.Reply(VhostUserRequest.GetConfig));
        Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
    }

    [Fact]
    public void TheMemoryTableIsMapped()
    {
        using var front = Negotiated();
        using var first = Memfd();
        using var second = Memfd();
        front.Accepted(VhostUserRequest.SetMemTable, Table(Region(0x200000), Region(0, 0xa0000, offset: 0x1000)), first, second);
        var memory = front.Connection.Memory;
        Assert.Equal((0UL, 0xa0000UL, 0x200000UL), (memory.Regions[0].GuestAddress, memory.Regions[0].Size, memory.Regions[1].GuestAddress));
        memory.WriteExact(0x10, "guest"u8);
        memory.WriteExact(0x200020, "other"u8);
        Assert.Equal("guest"u8, Content(second, 0x1010, 5));
        Assert.Equal("other"u8, Content(first, 0x20, 5));
        // A new table replaces all of it.
        using var third = Memfd();
        front.Accepted(VhostUserRequest.SetMemTable, Table(Region(0)), third);
        Assert.True(memory.Regions[0].IsDisposed && memory.Regions[1].IsDisposed);
        Assert.Single(front.Connection.Memory.Regions);
    }

    [Fact]
    public void RegionsAreAddedAndRemoved()
    {
        using var front = Negotiated();
        using var file = Memfd();
        front.Accepted(VhostUserRequest.AddMemReg, Single(Region(0x400000)), file);
        front.Accepted(VhostUserRequest.AddMemReg, Single(Region(0)), file);
        var memory = front.Connection.Memory;
        Assert.Equal([0UL, 0x400000UL], memory.Regions.Select(static region => region.GuestAddress));
        front.Refused(GuestMemoryError.NoMemoryRegion, VhostUserRequest.RemMemReg, Single(Region(0, 0x1000)));
        front.Refused(GuestMemoryError.NoMemoryRegion, VhostUserRequest.RemMemReg, Single(Region(0, user: User + 0x1000)));
        // Earlier front ends send the descriptor again.
        front.Accepted(VhostUserRequest.RemMemReg, Single(Region(0)), file);
        front.Accepted(VhostUserRequest.RemMemReg, Single(Region(0x400000)));
        Assert.Empty(front.Connection.Memory.Regions);
        Assert.All(memory.Regions, static region => Assert.True(region.IsDisposed));
    }

    [Theory]
    [InlineData(0xff000, 0x100000, null, 0, GuestMemoryError.MemoryRegionOverlap)]
    [InlineData(0, 0x1000, null, 0, GuestMemoryError.MemoryRegionOverlap)]
    [InlineData(0x200000, 0x1000, 0x7f00000ff000UL, 0, GuestMemoryError.MemoryRegionOverlap)]
    [InlineData(0x200000, 0x1000, 0x7effffff0000UL, 0, null)]
    [InlineData(0x200000, 0, null, 0, GuestMemoryError.ZeroSize)]
    [InlineData(0x200000, 0x100000, null, 0x1000, GuestMemoryError.MappingPastEof)]
    [InlineData(0x200000, 0x1000, null, 0xfffffffffffff000, GuestMemoryError.MappingPastEof)]
    [InlineData(0x200000, 0x1000, null, 0x10, GuestMemoryError.UnalignedOffset)]
    [InlineData(0xfffffffffffff000, 0x2000, null, 0, GuestMemoryError.InvalidGuestRegion)]
    [InlineData(0x200000, 0x2000, 0xfffffffffffff000, 0, GuestMemoryError.InvalidGuestRegion)]
    public void RegionsThatCannotBeAreRefused(ulong guest, ulong size, ulong? user, ulong offset, GuestMemoryError? expected)
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var file = Memfd();
        var memory = front.Connection.Memory;
        var before = Host.Resources();
        var region = Region(guest, size, user ?? unchecked(User + 0x10000000 + guest % 0x10000000), offset);
        if (expected is { } error) front.Refused(error, VhostUserRequest.AddMemReg, Single(region), file);
        else front.Accepted(VhostUserRequest.AddMemReg, Single(region), file);
        if (expected is null) return;
        Assert.Same(memory, front.Connection.Memory);
        Host.AssertNoneLeft(before);
        memory.WriteExact(0, "still"u8);
    }

    [Fact]
    public void FilesThatCanShrinkAreOnlyForTheTrusted()
    {
        using var folder = new TestFolder();
        File.WriteAllBytes(folder["memory"], new byte[Size]);
        using var front = Negotiated();
        using var file = Open(folder["memory"]);
        front.Refused(GuestMemoryError.FileNotSealed, VhostUserRequest.AddMemReg, Single(Region(0)), file);
        using var trusting = Negotiated(trusted: true);
        trusting.Accepted(VhostUserRequest.AddMemReg, Single(Region(0)), file);
        trusting.Connection.Memory.WriteExact(0, "file"u8);
    }

    [Fact]
    public void AVringRunsWhenAllIsKnown()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(1, 0x8000);
        Assert.Equal(["start 1"], front.Device.Events);
        var vring = front.Device.Running[1];
        Assert.Equal((16, (ushort)5, 0x8000UL, 0x9000UL, 0xa000UL), (vring.Size, vring.NextAvailable, vring.DescriptorTable.Value, vring.AvailableRing.Value, vring.UsedRing.Value));
        Assert.Equal(front.Connection.Features, vring.Features);
        front.Accepted(VhostUserRequest.SetVringEnable, State(1, 0));
        front.Device.Taken = 3;
        front.Accepted(VhostUserRequest.SetVringEnable, State(1, 1));
        Assert.Equal(["start 1", "stop 1", "start 1"], front.Device.Events);
        front.Send(VhostUserRequest.GetVringBase, State(1, 0));
        Assert.Equal(State(1, 8), front.Reply(VhostUserRequest.GetVringBase));
        Assert.Empty(front.Device.Running);
        // A stopped one starts with another kick.
        front.Accepted(VhostUserRequest.SetVringEnable, State(1, 1));
        Assert.Empty(front.Device.Running);
        front.Start(1, 0x8000);
        Assert.Single(front.Device.Running);
    }

    [Fact]
    public void WithoutProtocolFeaturesVringsRunAtOnce()
    {
        using var front = new FrontEnd();
        front.Send(VhostUserRequest.SetFeatures, Bytes(0x40UL));
        using var file = Memfd();
        front.Send(VhostUserRequest.SetMemTable, Table(Region(0)), 0, file);
        front.Send(VhostUserRequest.SetVringNum, State(0, 16));
        front.Send(VhostUserRequest.SetVringAddr, Address(0, User));
        using var kick = EventFd.Create();
        front.Send(VhostUserRequest.SetVringKick, Bytes(0UL), 0, kick);
        Assert.NotEqual(0UL, front.Ask(VhostUserRequest.GetFeatures));
        Assert.Single(front.Device.Running);
        front.Send(VhostUserRequest.SetVringEnable, State(0, 0));
        Assert.Equal(GuestMemoryError.InactiveOperation, front.Failure().Error);
    }

    [Fact]
    public void ResetOwnerDisablesTheVrings()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(0, 0);
        front.Start(1, 0x8000);
        front.Accepted(VhostUserRequest.ResetOwner);
        Assert.Empty(front.Device.Running);
        front.Accepted(VhostUserRequest.SetOwner);
        front.Accepted(VhostUserRequest.SetVringEnable, State(0, 1));
        Assert.Single(front.Device.Running);
    }

    [Fact]
    public void ARunningVringFollowsTheMemory()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(0, 0x8000);
        using var file = Memfd();
        front.Accepted(VhostUserRequest.AddMemReg, Single(Region(0x400000)), file);
        Assert.Equal(["start 0", "stop 0", "start 0"], front.Device.Events);
        Assert.Same(front.Connection.Memory, front.Device.Running[0].Memory);
        // The memory that it lies in stays.
        front.Refused(GuestMemoryError.InvalidGuestAddress, VhostUserRequest.RemMemReg, Single(Region(0)));
        front.Refused(GuestMemoryError.InvalidGuestAddress, VhostUserRequest.SetMemTable, Table(Region(0x400000)), file);
        Assert.Equal(3, front.Device.Events.Count);
        front.Device.Running[0].Memory.WriteExact(0, "there"u8);
        front.Accepted(VhostUserRequest.RemMemReg, Single(Region(0x400000)));
    }

    [Fact]
    public void ValuesOutOfRangeAreRefused()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var kick = EventFd.Create();
        foreach (var request in new[] { VhostUserRequest.SetVringNum, VhostUserRequest.SetVringBase, VhostUserRequest.SetVringEnable })
            front.Refused(GuestMemoryError.InvalidParam, request, State(2, 1));
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringKick, Bytes(2UL), kick);
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringCall, Bytes(255UL), kick);
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringAddr, Address(uint.MaxValue, User));
        foreach (var size in new uint[] { 0, 3, 512, 0x10000, uint.MaxValue }) front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringNum, State(0, size));
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringBase, State(0, 0x10000));
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringEnable, State(0, 2));
        front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringAddr, Address(0, User, flags: 2));
        foreach (var shift in new ulong[] { 1, 2, 4, 8 }) front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringAddr, Address(0, User + shift));
        front.Accepted(VhostUserRequest.SetVringNum, State(0, 256));
        foreach (var user in new[] { User - 0x1000, User + Size, User + Size - 0x1000, User + Size - 0x2000, 0UL, 0xfffffffffffff000 })
            front.Refused(GuestMemoryError.InvalidGuestAddress, VhostUserRequest.SetVringAddr, Address(0, user));
        // The used ring has 2054 bytes, and the region ends 2048 behind its start.
        var address = new VhostVringAddr { desc_user_addr = User, avail_user_addr = User, used_user_addr = User + Size - 0x800 };
        front.Refused(GuestMemoryError.InvalidGuestAddress, VhostUserRequest.SetVringAddr, Bytes(address));
        front.Refused(GuestMemoryError.InactiveOperation, VhostUserRequest.SetVringKick, Bytes(0x100UL));
        Assert.Empty(front.Device.Events);
    }

    [Fact]
    public void ARunningVringKeepsItsShape()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(0, 0);
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.SetVringNum, State(0, 32));
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.SetVringBase, State(0, 1));
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.SetFeatures, Bytes(Protocol));
        front.Refused(GuestMemoryError.InvalidGuestAddress, VhostUserRequest.SetVringAddr, Address(0, User + Size));
        Assert.Equal(["start 0"], front.Device.Events);
    }

    [Fact]
    public void TheGuestIsToldByTheCallOfTheMoment()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(0, 0);
        using var call = EventFd.Create();
        using var error = EventFd.Create();
        front.Accepted(VhostUserRequest.SetVringCall, Bytes(0UL), call);
        front.Accepted(VhostUserRequest.SetVringErr, Bytes(0UL), error);
        var vring = front.Device.Running[0];
        vring.SignalCall();
        Assert.Equal((true, false), (EventFd.Clear(call), EventFd.Clear(error)));
        vring.SignalError();
        Assert.True(EventFd.Clear(error));
        front.Accepted(VhostUserRequest.SetVringCall, Bytes(0x100UL));
        vring.SignalCall();
        Assert.False(EventFd.Clear(call));
        Assert.Equal(["start 0"], front.Device.Events);
    }

    [Theory]
    [InlineData(12)]
    [InlineData(13)]
    [InlineData(14)]
    public void DescriptorsMustBeEventfds(uint request)
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        Assert.NotEqual(0UL, front.Acknowledged((VhostUserRequest)request, Bytes(0UL), shared));
        Assert.Equal(GuestMemoryError.IncorrectFds, front.Failure().Error);
    }

    [Fact]
    public void TheEndReleasesEverything()
    {
        var before = Host.Resources();
        var front = Negotiated();
        using (var shared = front.ShareMemory())
        {
            front.Start(0, 0);
            front.Start(1, 0x8000);
            using var log = Memfd(0x1000);
            front.SetLog(log, 0x1000);
            front.SetLogging(true);
        }

        var memory = front.Connection.Memory;
        front.Dispose();
        Assert.Empty(front.Device.Running);
        Assert.All(memory.Regions, static region => Assert.True(region.IsDisposed));
        Host.AssertNoneLeft(before);
    }

    private static byte[] Content(SafeDescriptor file, long offset, int length)
    {
        using var handle = Descriptor.Duplicate(file);
        var bytes = new byte[length];
        Assert.Equal(length, RandomAccess.Read(handle, bytes, offset));
        return bytes;
    }
}
