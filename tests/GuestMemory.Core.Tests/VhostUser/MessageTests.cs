using System.Runtime.InteropServices;
using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>vhost-user-log.md, sections 3 and 6.10: messages and what they must be.</summary>
public sealed class MessageTests : IDisposable
{
    private readonly SafeDescriptor _near;
    private readonly SafeDescriptor _far;

    public MessageTests() => (_near, _far) = UnixSocket.CreatePair(nonBlocking: false, UnixSocket.SOCK_STREAM);

    public void Dispose()
    {
        _near.Dispose();
        _far.Dispose();
    }

    public sealed record Any(uint Request, bool NeedReply, byte[] Payload, int Descriptors)
    {
        public static Arbitrary<Any> Arbitrary()
        {
            var any = from request in Gen.Choose(0, 60)
                      from need in ArbMap.Default.GeneratorFor<bool>()
                      from length in Gen.OneOf(Gen.Elements(0, 8, 12, 16, 40, 72, 264), Gen.Choose(0, VhostUserHeader.MaxPayload))
                      from seed in Gen.Choose(0, int.MaxValue)
                      from descriptors in Gen.Choose(0, VhostUserMessage.MaxDescriptors)
                      select new Any((uint)request, need, Random(seed, length), descriptors);
            return Arb.From(any);
        }

        private static byte[] Random(int seed, int length)
        {
            var bytes = new byte[length];
            new Random(seed).NextBytes(bytes);
            return bytes;
        }
    }

    [Fact]
    public void V6_10_SetLogBase()
    {
        using var log = EventFd.Create();
        VhostUserMessage.Send(_near, VhostUserRequest.SetLogBase, 0, FrontEnd.Bytes(0x1000UL, 0UL), [log.Number]);
        var bytes = new byte[64];
        var descriptors = new List<SafeDescriptor>();
        var length = (int)UnixSocket.TryReceive(_far, bytes, descriptors, out _);
        Assert.Equal("060000000100000010000000" + "0010000000000000" + "0000000000000000", Convert.ToHexString(bytes.AsSpan(0, length)));
        Assert.Single(descriptors).Dispose();
        VhostUserMessage.Send(_near, VhostUserRequest.SetLogBase, VhostUserHeader.Reply, []);
        Assert.Equal(VhostUserHeader.Length, UnixSocket.TryReceive(_far, bytes, [], out _));
        Assert.Equal("060000000500000000000000", Convert.ToHexString(bytes.AsSpan(0, VhostUserHeader.Length)));
    }

    [Theory]
    [InlineData(0x1000, 0, null)]
    [InlineData(1, ulong.MaxValue - 1, null)]
    [InlineData(0, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(1, ulong.MaxValue, GuestMemoryError.InvalidMessage)]
    public void V6_10_TheBodyOfSetLogBase(ulong size, ulong offset, GuestMemoryError? expected) =>
        Assert.Equal(expected, Check(VhostUserRequest.SetLogBase, FrontEnd.Bytes(size, offset), 1));

    [ModelProperty(200, typeof(Any))]
    public void WhatIsSentIsReceived(Any any)
    {
        using var file = EventFd.Create();
        var flags = any.NeedReply ? VhostUserHeader.NeedReply : 0;
        VhostUserMessage.Send(_near, (VhostUserRequest)any.Request, flags, any.Payload, Enumerable.Repeat(file.Number, any.Descriptors).ToArray());
        using var message = VhostUserMessage.Receive(_far)!;
        Assert.Equal(new VhostUserHeader((VhostUserRequest)any.Request, 1 | flags, (uint)any.Payload.Length), message.Header);
        Assert.Equal(any.Payload, message.Payload);
        Assert.Equal(any.Descriptors, message.Descriptors.Count);
        Assert.All(message.Descriptors, static descriptor => Assert.True(EventFd.IsEventFd(descriptor)));
        // It is accepted or refused, and nothing else.
        Assert.True(Record.Exception(() => VhostUserLayout.Check(message)) is null or GuestMemoryException { Error: GuestMemoryError.InvalidMessage or GuestMemoryError.IncorrectFds });
    }

    /// <summary>For each request the sizes that it may have, and the descriptors; one more and one less are refused.</summary>
    [Theory]
    [InlineData(1, 0, 0)]
    [InlineData(2, 8, 0)]
    [InlineData(3, 0, 0)]
    [InlineData(4, 0, 0)]
    [InlineData(5, 40, 1)]
    [InlineData(6, 16, 1)]
    [InlineData(7, 0, 1)]
    [InlineData(8, 8, 0)]
    [InlineData(9, 40, 0)]
    [InlineData(10, 8, 0)]
    [InlineData(11, 8, 0)]
    [InlineData(12, 8, 1)]
    [InlineData(13, 8, 1)]
    [InlineData(14, 8, 1)]
    [InlineData(15, 0, 0)]
    [InlineData(16, 8, 0)]
    [InlineData(17, 0, 0)]
    [InlineData(18, 8, 0)]
    [InlineData(24, 13, 0)]
    [InlineData(36, 0, 0)]
    [InlineData(37, 40, 1)]
    [InlineData(38, 40, 0)]
    [InlineData(38, 40, 1)]
    public void SizesAndDescriptorsAreExact(uint number, int size, int descriptors)
    {
        var request = (VhostUserRequest)number;
        var payload = Payload(request, size);
        Assert.Null(Check(request, payload, descriptors));
        Assert.Equal(GuestMemoryError.InvalidMessage, Check(request, [.. payload, 0], descriptors));
        if (size > 0) Assert.Equal(GuestMemoryError.InvalidMessage, Check(request, payload[..^1], descriptors));
        Assert.Equal(GuestMemoryError.IncorrectFds, Check(request, payload, 2));
        if (descriptors == 1 && request != VhostUserRequest.RemMemReg) Assert.Equal(GuestMemoryError.IncorrectFds, Check(request, payload, 0));
        if (descriptors == 0 && request != VhostUserRequest.RemMemReg) Assert.Equal(GuestMemoryError.IncorrectFds, Check(request, payload, 1));
    }

    [Theory]
    [InlineData(0, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(33, 32, GuestMemoryError.InvalidMessage)]
    [InlineData(uint.MaxValue, 1, GuestMemoryError.InvalidMessage)]
    [InlineData(2, 1, GuestMemoryError.IncorrectFds)]
    [InlineData(2, 3, GuestMemoryError.IncorrectFds)]
    [InlineData(2, 2, null)]
    [InlineData(32, 32, null)]
    public void TheMemoryTableCountsItsRegions(uint count, int descriptors, GuestMemoryError? expected)
    {
        var payload = new byte[8 + 32 * (int)Math.Min(count, 100)];
        MemoryMarshal.Write(payload, count);
        Assert.Equal(expected, Check(VhostUserRequest.SetMemTable, payload, descriptors));
    }

    [Theory]
    [InlineData(0x100, 0, null)]
    [InlineData(0x101, 1, GuestMemoryError.IncorrectFds)]
    [InlineData(0x200, 1, GuestMemoryError.InvalidMessage)]
    [InlineData(1UL << 63, 1, GuestMemoryError.InvalidMessage)]
    public void TheDescriptorOfAVringMayBeLeftOut(ulong value, int descriptors, GuestMemoryError? expected) =>
        Assert.Equal(expected, Check(VhostUserRequest.SetVringCall, FrontEnd.Bytes(value), descriptors));

    [Theory]
    [InlineData(0, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(2, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(3, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(5, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(0x11, 0, GuestMemoryError.InvalidMessage)]
    [InlineData(1, 0x1001, GuestMemoryError.PacketTooLarge)]
    [InlineData(9, uint.MaxValue, GuestMemoryError.PacketTooLarge)]
    public void HeadersAreChecked(uint flags, uint size, GuestMemoryError expected)
    {
        UnixSocket.TrySend(_near, FrontEnd.Bytes(1U, flags, size), []);
        Assert.Equal(expected, Assert.Throws<GuestMemoryException>(() => VhostUserMessage.Receive(_far)).Error);
    }

    [Fact]
    public void AMessageMayComeInPieces()
    {
        using var file = EventFd.Create();
        var sender = new Thread(() =>
        {
            byte[] bytes = [.. FrontEnd.Bytes(8, 1, 8), .. FrontEnd.State(1, 256)];
            for (var i = 0; i < bytes.Length; i++) UnixSocket.TrySend(_near, [bytes[i]], i == 0 ? [file.Number] : []);
        });
        sender.Start();
        using var message = VhostUserMessage.Receive(_far)!;
        sender.Join();
        Assert.Equal((VhostUserRequest.SetVringNum, 256U, 1), (message.Request, message.Body<VhostVringState>().num, message.Descriptors.Count));
    }

    [Theory]
    [InlineData(0, null)]
    [InlineData(1, GuestMemoryError.PartialMessage)]
    [InlineData(12, GuestMemoryError.PartialMessage)]
    [InlineData(19, GuestMemoryError.PartialMessage)]
    public void TheEndInAMessageIsAnError(int length, GuestMemoryError? expected)
    {
        byte[] bytes = [.. FrontEnd.Bytes(8, 1, 8), .. FrontEnd.State(0, 1)];
        if (length > 0) UnixSocket.TrySend(_near, bytes.AsSpan(0, length), []);
        UnixSocket.Shutdown(_near);
        if (expected is null) Assert.Null(VhostUserMessage.Receive(_far));
        else Assert.Equal(expected, Assert.Throws<GuestMemoryException>(() => VhostUserMessage.Receive(_far)).Error);
    }

    [Fact]
    public void DescriptorsThatAreTooManyAreClosed()
    {
        using var file = EventFd.Create();
        var before = Host.Resources();
        foreach (var count in new[] { 1, 32, 33, 100 })
        {
            UnixSocket.TrySend(_near, FrontEnd.Bytes(1, 1, 0), Enumerable.Repeat(file.Number, count).ToArray());
            if (count <= 32) VhostUserMessage.Receive(_far)!.Dispose();
            else Assert.Equal(GuestMemoryError.IncorrectFds, Assert.Throws<GuestMemoryException>(() => VhostUserMessage.Receive(_far)).Error);
        }

        Host.AssertNoneLeft(before);
    }

    /// <summary>A payload that is right, of its size.</summary>
    private static byte[] Payload(VhostUserRequest request, int size)
    {
        var payload = new byte[size];
        if (request == VhostUserRequest.SetMemTable) payload[0] = 1;
        if (request == VhostUserRequest.SetLogBase) payload[1] = 0x10;
        if (request == VhostUserRequest.GetConfig) payload[4] = 1;
        return payload;
    }

    private GuestMemoryError? Check(VhostUserRequest request, byte[] payload, int descriptors)
    {
        using var file = EventFd.Create();
        VhostUserMessage.Send(_near, request, 0, payload, Enumerable.Repeat(file.Number, descriptors).ToArray());
        using var message = VhostUserMessage.Receive(_far)!;
        return (Record.Exception(() => VhostUserLayout.Check(message)) as GuestMemoryException)?.Error;
    }
}
