using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>Front ends that break the protocol: the connection ends with an error, nothing is left, and nothing is met by silence.</summary>
public sealed class HostilePeerTests
{
    /// <summary>Every request that was not offered, and numbers that are none.</summary>
    public static TheoryData<uint> NotOffered => [0, 19, 20, 21, 22, 23, 25, 26, 27, 33, 34, 35, 39, 40, 41, 42, 43, 44, 45, 99, uint.MaxValue];

    [Theory]
    [MemberData(nameof(NotOffered))]
    public void WhatWasNotOfferedIsRefused(uint number)
    {
        var before = Host.Resources();
        using (var front = Negotiated())
        {
            using var file = EventFd.Create();
            var request = (VhostUserRequest)number;
            front.Send(request, new byte[8], VhostUserHeader.NeedReply, file);
            // A request with a reply of its own has none that says no.
            if (number is 26 or 40 or 41 or 42 or 43 or 44)
            {
                Assert.Equal(GuestMemoryError.InactiveOperation, front.Failure().Error);
            }
            else
            {
                Assert.Equal(Bytes(1UL), front.Reply(request));
                Assert.Equal(2UL, front.Ask(VhostUserRequest.GetQueueNum));
                front.Send(request, new byte[8], 0, file);
                Assert.Equal(GuestMemoryError.InactiveOperation, front.Failure().Error);
            }
        }

        Host.AssertNoneLeft(before);
    }

    [Theory]
    [InlineData(17)]
    [InlineData(36)]
    [InlineData(18)]
    [InlineData(24)]
    [InlineData(6)]
    [InlineData(37)]
    [InlineData(38)]
    [InlineData(31)]
    [InlineData(32)]
    public void WhatWasNotNegotiatedEndsTheConnection(uint number)
    {
        using var front = new FrontEnd();
        using var file = Memfd();
        var request = (VhostUserRequest)number;
        var payload = request switch
        {
            VhostUserRequest.SetVringEnable => State(0, 1),
            VhostUserRequest.GetConfig => [.. Bytes(0, 1, 0), 0],
            VhostUserRequest.SetLogBase => Bytes(0x1000UL, 0UL),
            VhostUserRequest.AddMemReg or VhostUserRequest.RemMemReg => Single(Region(0)),
            VhostUserRequest.GetInflightFd or VhostUserRequest.SetInflightFd => Bytes(new VhostUserInflightPayload(0x1000, 0, 1, 16)),
            _ => null,
        };
        front.Send(request, payload, VhostUserHeader.NeedReply, request is VhostUserRequest.SetLogBase or VhostUserRequest.AddMemReg or VhostUserRequest.SetInflightFd ? [file] : []);
        Assert.Equal(GuestMemoryError.InactiveOperation, front.Failure().Error);
    }

    [Fact]
    public void AnErrorThatNoReplyTellsEndsTheConnection()
    {
        using var front = Negotiated();
        front.Send(VhostUserRequest.SetVringNum, State(9, 16));
        Assert.Equal(GuestMemoryError.InvalidParam, front.Failure().Error);
    }

    [Fact]
    public void AMalformedMessageEndsTheConnectionAfterItsReply()
    {
        using var front = Negotiated();
        Assert.NotEqual(0UL, front.Acknowledged(VhostUserRequest.SetFeatures, new byte[9]));
        Assert.Equal(GuestMemoryError.InvalidMessage, front.Failure().Error);
    }

    [Theory]
    [InlineData("010000000200000000000000", GuestMemoryError.InvalidMessage)]
    [InlineData("010000000500000000000000", GuestMemoryError.InvalidMessage)]
    [InlineData("0100000001000000FFFFFFFF", GuestMemoryError.PacketTooLarge)]
    [InlineData("01000000", GuestMemoryError.PartialMessage)]
    [InlineData("02000000010000000800000001", GuestMemoryError.PartialMessage)]
    public void BadHeadersEndTheConnection(string hex, GuestMemoryError expected)
    {
        var before = Host.Resources();
        using (var front = new FrontEnd())
        {
            using var file = EventFd.Create();
            front.SendRaw(Convert.FromHexString(hex), file, file);
            UnixSocket.Shutdown(front.Socket);
            Assert.Equal(expected, front.Failure().Error);
        }

        Host.AssertNoneLeft(before);
    }

    [Fact]
    public void ATableThatOverlapsChangesNothing()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var file = Memfd();
        var before = Host.Resources();
        front.Refused(GuestMemoryError.MemoryRegionOverlap, VhostUserRequest.SetMemTable, Table(Region(0), Region(0xff000)), file, file);
        front.Refused(GuestMemoryError.MemoryRegionOverlap, VhostUserRequest.SetMemTable, Table(Region(0), Region(0x200000, user: User + 0xff000)), file, file);
        Host.AssertNoneLeft(before);
        Assert.Single(front.Connection.Memory.Regions);
    }

    [Fact]
    public void APeerThatReadsNoRepliesCanBeStopped()
    {
        using var front = new FrontEnd();
        var sender = new Thread(() =>
        {
            // Until neither end has room for more.
            while (UnixSocket.TrySend(front.Socket, Bytes(1, 1, 0), []) > 0)
            {
            }
        });
        sender.Start();
        front.Connection.Stop();
        sender.Join();
    }

    /// <summary>A descriptor that came with a request that was refused is closed at once: its other end learns of it.</summary>
    [Theory]
    [InlineData((uint)VhostUserRequest.AddMemReg, GuestMemoryError.FileNotSealed)]
    [InlineData((uint)VhostUserRequest.SetVringKick, GuestMemoryError.IncorrectFds)]
    [InlineData((uint)VhostUserRequest.GetFeatures, GuestMemoryError.IncorrectFds)]
    public void ARefusedDescriptorIsClosed(uint number, GuestMemoryError error)
    {
        var request = (VhostUserRequest)number;
        using var front = Negotiated();
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true, UnixSocket.SOCK_STREAM);
        using (near)
        {
            front.Send(request, request switch
            {
                VhostUserRequest.AddMemReg => Single(Region(0)),
                VhostUserRequest.SetVringKick => Bytes(0UL),
                _ => [],
            }, VhostUserHeader.NeedReply, far);
            far.Dispose();
            front.Drain();
            Assert.Equal(error, front.Connection.LastRefusal!.Error);
            // Nothing to read, and the end.
            Assert.Equal(0, UnixSocket.TryReceive(near, new byte[1], [], out _));
        }
    }

    /// <summary>Random requests with random values, as they come: no error but the library's, and every descriptor is closed.</summary>
    [Fact]
    public void RandomRequestsEndInErrorsOnly()
    {
        var random = new Random(14);
        using var memory = Memfd();
        using var kick = EventFd.Create();
        var before = Host.Resources();
        for (var round = 0; round < 40; round++)
        {
            using var front = Negotiated();
            using var shared = front.ShareMemory();
            front.Start(0, 0);
            for (var i = 0; i < 25; i++)
            {
                var payload = new byte[random.Next(5) switch { 0 => 0, 1 => 8, 2 => 16, 3 => 40, _ => random.Next(80) }];
                random.NextBytes(payload);
                // Small numbers reach further.
                for (var at = 0; at < payload.Length; at++) payload[at] = random.Next(3) == 0 ? payload[at] : (byte)random.Next(2);
                var descriptors = Enumerable.Range(0, random.Next(3)).Select(_ => random.Next(2) == 0 ? memory : kick).ToArray();
                if (UnixSocket.TrySend(front.Socket, [.. Bytes((uint)random.Next(46), VhostUserHeader.Version | VhostUserHeader.NeedReply, (uint)payload.Length), .. payload],
                    Array.ConvertAll(descriptors, static descriptor => descriptor.Number)) < 0) break;
            }

            front.Drain();
        }

        Host.AssertNoneLeft(before);
    }
}
