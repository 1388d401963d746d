using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The end of a front end: it sends requests and takes replies.</summary>
internal abstract class FrontEndSocket
{
    public SafeDescriptor Socket { get; protected init; } = null!;

    /// <summary>The descriptors that came with replies.</summary>
    public List<SafeDescriptor> Received { get; } = [];

    public void Send(VhostUserRequest request, byte[]? payload = null, uint flags = 0, params SafeDescriptor[] descriptors) =>
        VhostUserMessage.Send(Socket, request, flags, payload, Array.ConvertAll(descriptors, static descriptor => descriptor.Number));

    public void SendRaw(byte[] bytes, params SafeDescriptor[] descriptors) =>
        Assert.Equal(bytes.Length, UnixSocket.TrySend(Socket, bytes, Array.ConvertAll(descriptors, static descriptor => descriptor.Number)));

    /// <summary>The payload of the reply that a request has of its own.</summary>
    public byte[] Reply(VhostUserRequest request)
    {
        var header = MemoryMarshal.Read<VhostUserHeader>(Receive(VhostUserHeader.Length));
        Assert.Equal((request, VhostUserHeader.Version | VhostUserHeader.Reply), (header.Request, header.Flags));
        return Receive((int)header.Size);
    }

    public ulong Ask(VhostUserRequest request)
    {
        Send(request);
        return BitConverter.ToUInt64(Reply(request));
    }

    /// <summary>Sends a request that asks for a reply: 0 where it was executed.</summary>
    public ulong Acknowledged(VhostUserRequest request, byte[]? payload = null, params SafeDescriptor[] descriptors)
    {
        Send(request, payload, VhostUserHeader.NeedReply, descriptors);
        return BitConverter.ToUInt64(Reply(request));
    }

    public void Accepted(VhostUserRequest request, byte[]? payload = null, params SafeDescriptor[] descriptors)
    {
        if (Acknowledged(request, payload, descriptors) != 0) Assert.Fail($"{request}: {Refusal()}");
    }

    /// <summary>Why a request was refused, or the connection has ended.</summary>
    protected abstract string? Refusal();

    protected byte[] Receive(int length)
    {
        var bytes = new byte[length];
        for (var done = 0; done < length;)
        {
            var received = UnixSocket.TryReceive(Socket, bytes.AsSpan(done), Received, out _, wait: true);
            if (received <= 0) Assert.Fail($"no reply but the end: {Refusal()}");
            done += (int)received;
        }

        return bytes;
    }
}
