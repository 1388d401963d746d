using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>A client of NBD that says what a test has it say, byte by byte; numbers are written down here once more.</summary>
internal sealed class NbdClient : IDisposable
{
    private readonly Socket _socket;

    public NbdClient(string path)
    {
        _socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { ReceiveTimeout = 30_000, SendTimeout = 30_000 };
        _socket.Connect(new UnixDomainSocketEndPoint(path));
    }

    public NbdClient(int port)
    {
        _socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { ReceiveTimeout = 30_000, SendTimeout = 30_000 };
        _socket.Connect(System.Net.IPAddress.Loopback, port);
    }

    public static byte[] Big(ulong value) => Enumerable.Range(0, 8).Select(place => (byte)(value >> (56 - 8 * place))).ToArray();

    public static byte[] Big(uint value) => Big((ulong)value)[4..];

    public static byte[] Big(ushort value) => Big((ulong)value)[6..];

    public static byte[] Text(string text) => [.. Big((uint)text.Length), .. Encoding.ASCII.GetBytes(text)];

    public NbdClient Greet(uint flags = 3)
    {
        Assert.Equal([.. "NBDMAGICIHAVEOPT"u8, 0, 3], Receive(18));
        Send(Big(flags));
        return this;
    }

    public void SendOption(uint option, params byte[] data) => Send([.. "IHAVEOPT"u8, .. Big(option), .. Big((uint)data.Length), .. data]);

    /// <summary>An answer to an option: its type, and its data.</summary>
    public (uint Type, byte[] Data) ReceiveReply(uint option)
    {
        var header = Receive(20);
        Assert.Equal([.. Big(0x3e889045565a9UL), .. Big(option)], header[..12]);
        return (Number(header[12..16]), Receive((int)Number(header[16..20])));
    }

    /// <summary>Takes the export with structured replies and its status.</summary>
    public NbdClient Go(bool isStructured = true)
    {
        Greet();
        if (isStructured)
        {
            SendOption(8);
            Assert.Equal(1u, ReceiveReply(8).Type);
            SendOption(10, [.. Text(""), .. Big(1u), .. Text("base:allocation")]);
            Assert.Equal((4u, "base:allocation"), (ReceiveReply(10) is var reply ? reply.Type : 0, Encoding.ASCII.GetString(reply.Data[4..])));
            Assert.Equal(1u, ReceiveReply(10).Type);
        }

        SendOption(7, [.. Text(""), .. Big((ushort)0)]);
        var info = ReceiveReply(7);
        Assert.Equal(3u, info.Type);
        Size = BinaryPrimitives.ReadUInt64BigEndian(info.Data.AsSpan(2));
        Flags = BinaryPrimitives.ReadUInt16BigEndian(info.Data.AsSpan(10));
        Assert.Equal(1u, ReceiveReply(7).Type);
        return this;
    }

    public ulong Size { get; private set; }

    public ushort Flags { get; private set; }

    public void SendRequest(ushort type, ulong offset, uint length, ulong cookie = 7, ushort flags = 0) =>
        Send([.. Big(0x25609513u), .. Big(flags), .. Big(type), .. Big(cookie), .. Big(offset), .. Big(length)]);

    /// <summary>A simple answer's error.</summary>
    public uint ReceiveSimple(ulong cookie = 7)
    {
        var header = Receive(16);
        Assert.Equal(Big(0x67446698u), header[..4]);
        Assert.Equal(Big(cookie), header[8..]);
        return Number(header[4..8]);
    }

    /// <summary>The chunks of a structured answer.</summary>
    public List<(ushort Type, byte[] Data)> ReceiveChunks(ulong cookie = 7)
    {
        var chunks = new List<(ushort Type, byte[] Data)>();
        while (true)
        {
            var header = Receive(20);
            Assert.Equal(Big(0x668e33efu), header[..4]);
            Assert.Equal(Big(cookie), header[8..16]);
            chunks.Add((BinaryPrimitives.ReadUInt16BigEndian(header.AsSpan(6)), Receive((int)Number(header[16..20]))));
            if (header[5] == 1) return chunks;
        }
    }

    /// <summary>Reads, with structured answers; holes are zeros.</summary>
    public byte[] Read(ulong offset, uint length)
    {
        SendRequest(0, offset, length);
        var read = new byte[length];
        foreach (var (type, data) in ReceiveChunks())
        {
            var at = (int)(BinaryPrimitives.ReadUInt64BigEndian(data) - offset);
            if (type == 1) data[8..].CopyTo(read, at);
            else Assert.Equal(2, type);
        }

        return read;
    }

    public uint ReadError(ulong offset, uint length)
    {
        SendRequest(0, offset, length);
        var chunk = ReceiveChunks()[^1];
        Assert.Equal(0x8001, chunk.Type);
        return Number(chunk.Data[..4]);
    }

    public void Send(ReadOnlySpan<byte> bytes)
    {
        while (!bytes.IsEmpty) bytes = bytes[_socket.Send(bytes)..];
    }

    public byte[] Receive(int count)
    {
        var bytes = new byte[count];
        for (var done = 0; done < count;)
        {
            var came = _socket.Receive(bytes.AsSpan(done));
            if (came == 0) throw new EndOfStreamException();
            done += came;
        }

        return bytes;
    }

    /// <summary>Whether the server ends the connection.</summary>
    public bool Ends()
    {
        try
        {
            while (_socket.Receive(new byte[4096]) > 0)
            {
            }

            return true;
        }
        catch (SocketException exception)
        {
            return exception.SocketErrorCode == SocketError.ConnectionReset;
        }
    }

    public void Dispose() => _socket.Dispose();

    private static uint Number(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt32BigEndian(bytes);
}
