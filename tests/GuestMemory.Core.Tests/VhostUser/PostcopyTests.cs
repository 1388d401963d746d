using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>The messages of post-copy, and what is refused: vhost-user-log.md, section 3.9 and vectors 6.12.</summary>
public sealed class PostcopyTests
{
    private static byte[] Ack => Bytes(0UL);

    [UffdFact]
    public void TheFrontEndLearnsWhereItsMemoryIsMissed()
    {
        var before = Host.Resources();
        using (var front = Negotiated())
        {
            Advise(front);
            Assert.True(Userfaultfd.IsUserfaultfd(front.Received[0].Number));
            Assert.False(front.Connection.IsPostcopy);
            front.Accepted(VhostUserRequest.PostcopyListen);
            Assert.True(front.Connection.IsPostcopy);
            using var file = Memfd();
            var (low, high) = (Region(0, 0x1000, offset: 0x2000), Region(0x200000));
            // Also where a reply is asked for there is one alone.
            front.Send(VhostUserRequest.SetMemTable, Table(high, low), VhostUserHeader.NeedReply, file, file);
            var reply = front.Reply(VhostUserRequest.SetMemTable);
            Assert.Empty(front.Connection.Memory.Regions);
            front.Send(VhostUserRequest.SetMemTable, Ack, VhostUserHeader.NeedReply);
            Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
            var memory = front.Connection.Memory;
            Assert.Equal(Table(Region(0x200000, user: HostAddress(memory, 1)), Region(0, 0x1000, HostAddress(memory, 0), 0x2000)), reply);
            Assert.All(memory.Regions, static region => Assert.True(region.Memory.MayWait));
            front.Device.Events.Clear();
            front.Start(0, 0x200000);
            Assert.Equal(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
            Assert.False(front.Connection.IsPostcopy);
            Assert.All(memory.Regions, static region => Assert.False(region.Memory.MayWait));
            // It goes on in another way.
            Assert.Equal(["start 0", "stop 0", "start 0"], front.Device.Events);
            memory.WriteExact(0x200000, "there"u8);
            foreach (var descriptor in front.Received) descriptor.Dispose();
        }

        Host.AssertNoneLeft(before);
    }

    /// <summary>QEMU's way where regions come one by one: a single message says that it provides the pages of all.</summary>
    [UffdFact]
    public void SeveralRegionsAreAcknowledgedTogether()
    {
        using var front = Listening();
        using var file = Memfd();
        Add(front, 0, file);
        Add(front, 0x200000, file);
        Assert.Empty(front.Connection.Memory.Regions);
        front.Send(VhostUserRequest.AddMemReg, Ack);
        front.Start(0, 0x200000);
        Assert.Equal(["start 0"], front.Device.Events);
        Assert.Equal(2, front.Connection.Memory.Regions.Count);
        // A virtqueue that runs stands still until the front end knows where its pages are missed.
        Add(front, 0x400000, file);
        front.Send(VhostUserRequest.RemMemReg, Single(Region(0)), VhostUserHeader.NeedReply);
        Assert.Equal(0UL, BitConverter.ToUInt64(front.Reply(VhostUserRequest.RemMemReg)));
        Assert.Equal(["start 0", "stop 0"], front.Device.Events);
        front.Send(VhostUserRequest.RemMemReg, Ack);
        Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
        Assert.Equal(["start 0", "stop 0", "start 0"], front.Device.Events);
        Assert.Equal([0x200000UL, 0x400000UL], front.Connection.Memory.Regions.Select(static region => region.GuestAddress));
        Assert.Same(front.Connection.Memory, front.Device.Running[0].Memory);
        // QEMU's message where nothing has changed.
        front.Send(VhostUserRequest.None, Ack);
        Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
    }

    [UffdFact]
    public void WhatComesOutOfOrderIsRefused()
    {
        using var front = Negotiated();
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.PostcopyListen);
        CheckRefusedEnd(front);
        using (var shared = front.ShareMemory())
        {
            Advise(front);
            front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.PostcopyListen);
            front.Accepted(VhostUserRequest.RemMemReg, Single(Region(0)));
        }

        CheckRefusedEnd(front);
        // A second time, without a descriptor.
        front.Send(VhostUserRequest.PostcopyAdvise);
        Assert.Empty(front.Reply(VhostUserRequest.PostcopyAdvise));
        Assert.Single(front.Received);
        Assert.Equal(GuestMemoryError.InvalidOperation, front.Connection.LastRefusal!.Error);
        front.Accepted(VhostUserRequest.PostcopyListen);
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.PostcopyListen);
        Assert.Equal(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
        // And anew.
        Advise(front);
        front.Accepted(VhostUserRequest.PostcopyListen);
        Assert.Equal(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
    }

    [UffdFact]
    public void WithoutTheFeatureThereIsNoUserfaultfd()
    {
        using var front = new FrontEnd();
        front.Send(VhostUserRequest.PostcopyAdvise);
        Assert.Empty(front.Reply(VhostUserRequest.PostcopyAdvise));
        Assert.Empty(front.Received);
        Assert.Equal(GuestMemoryError.InactiveOperation, front.Connection.LastRefusal!.Error);
    }

    [UffdFact]
    public void MemoryThatIsNotAcknowledgedIsNotUsed()
    {
        using var front = Listening();
        using var file = Memfd();
        Add(front, 0, file);
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.SetVringNum, State(0, 16));
        CheckRefusedEnd(front);
        front.Send(VhostUserRequest.AddMemReg, Ack);
        front.Start(0, 0);
        Assert.Single(front.Device.Running);
        Assert.Equal(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
    }

    [UffdFact]
    public void AFrontEndThatCannotProvidePagesIsRefused()
    {
        using var front = Listening();
        using var file = Memfd();
        Add(front, 0, file);
        front.Send(VhostUserRequest.AddMemReg, Bytes(7UL));
        Assert.Equal(GuestMemoryError.InvalidOperation, front.Failure().Error);
        Assert.Empty(front.Device.Events);
    }

    /// <summary>An acknowledgement of nothing is a malformed request.</summary>
    [UffdFact]
    public void AnAcknowledgementOfNothingIsRefused()
    {
        using var front = Listening();
        front.Send(VhostUserRequest.SetMemTable, Ack);
        Assert.Equal(GuestMemoryError.InvalidMessage, front.Failure().Error);
    }

    [UffdTheory]
    [InlineData((uint)VhostUserRequest.PostcopyAdvise)]
    [InlineData((uint)VhostUserRequest.PostcopyListen)]
    [InlineData((uint)VhostUserRequest.PostcopyEnd)]
    public void WrongSizesAndDescriptorsEndTheConnection(uint number)
    {
        using var file = Memfd();
        foreach (var hasPayload in new[] { true, false })
        {
            var before = Host.Resources();
            using (var front = Negotiated())
            {
                if ((VhostUserRequest)number != VhostUserRequest.PostcopyAdvise) Advise(front);
                front.Send((VhostUserRequest)number, hasPayload ? new byte[8] : [], VhostUserHeader.NeedReply, hasPayload ? [] : [file]);
                Assert.Equal(hasPayload ? GuestMemoryError.InvalidMessage : GuestMemoryError.IncorrectFds, front.Failure().Error);
                foreach (var descriptor in front.Received) descriptor.Dispose();
            }

            Host.AssertNoneLeft(before);
        }
    }

    /// <summary>A file system whose pages the kernel reads itself: they cannot come from anywhere else.</summary>
    [UffdFact]
    public void MemoryThatCannotBeRegisteredIsRefused()
    {
        using var folder = new TestFolder();
        File.WriteAllBytes(folder["memory"], new byte[Size]);
        using var front = Negotiated(trusted: true);
        using var file = Open(folder["memory"]);
        Advise(front);
        front.Accepted(VhostUserRequest.PostcopyListen);
        front.Send(VhostUserRequest.SetMemTable, Table(Region(0)), VhostUserHeader.NeedReply, file);
        Assert.Equal(GuestMemoryError.UffdRegisterFailed, front.Failure().Error);
        Assert.Empty(front.Connection.Memory.Regions);
    }

    /// <summary>Its pages are as large as those of the file.</summary>
    [RootFact]
    public void HugePagesAreRegistered()
    {
        using var pool = new HugePagePoolOf(2 << 20, 1);
        const ulong HugePage = 2 << 20;
        using var file = Interop.Memfd.CreateSealed("vhost-test", (long)HugePage, hugePageShift: 21);
        using var front = Listening();
        front.Send(VhostUserRequest.AddMemReg, Single(Region(0, HugePage)), 0, file);
        front.Reply(VhostUserRequest.AddMemReg);
        front.Send(VhostUserRequest.AddMemReg, Ack);
        Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
        Assert.True(front.Connection.Memory.Regions[0].Memory.MayWait);
        Assert.Equal(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
        Assert.False(front.Connection.Memory.Regions[0].Memory.MayWait);
    }

    /// <summary>The memory that goes with the connection goes while someone may wait for it.</summary>
    [UffdFact]
    public void AnEndInTheMiddleLeavesNothing()
    {
        var before = Host.Resources();
        using (var front = Listening())
        {
            using var file = Memfd();
            Add(front, 0, file);
            front.Send(VhostUserRequest.AddMemReg, Ack);
            front.Start(0, 0);
            Add(front, 0x200000, file);
            foreach (var descriptor in front.Received) descriptor.Dispose();
        }

        Host.AssertNoneLeft(before);
    }

    private static FrontEnd Listening()
    {
        var front = Negotiated();
        Advise(front);
        front.Accepted(VhostUserRequest.PostcopyListen);
        return front;
    }

    private static void Advise(FrontEnd front)
    {
        var count = front.Received.Count;
        front.Send(VhostUserRequest.PostcopyAdvise);
        Assert.Empty(front.Reply(VhostUserRequest.PostcopyAdvise));
        Assert.Equal(count + 1, front.Received.Count);
    }

    /// <summary>Adds a region; its address in the back end.</summary>
    private static void Add(FrontEnd front, ulong guest, SafeDescriptor file)
    {
        front.Send(VhostUserRequest.AddMemReg, Single(Region(guest)), 0, file);
        var reply = front.Reply(VhostUserRequest.AddMemReg);
        Assert.Equal(Single(Region(guest, user: BitConverter.ToUInt64(reply, 8 + 16))), reply);
        Assert.NotEqual(User + guest, BitConverter.ToUInt64(reply, 8 + 16));
    }

    private static void CheckRefusedEnd(FrontEnd front)
    {
        Assert.NotEqual(0UL, front.Ask(VhostUserRequest.PostcopyEnd));
        Assert.Equal(GuestMemoryError.InvalidOperation, front.Connection.LastRefusal!.Error);
    }

    private static ulong HostAddress(GuestMemoryMmap memory, int index) => memory.Regions[index].GetMmapRegion().HostAddress;
}
