using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Xen;

/// <summary>
/// Reads the names of domains from xenstored, through its socket: a message is a header of four 32-bit numbers (type, request, transaction,
/// length) and so many bytes (<c>xen/io/xs_wire.h</c>). /dev/xen/xenbus would do the same, but waits for ever where no xenstored runs.
/// </summary>
internal sealed class XenStore : IDisposable
{
    /// <summary>Where xenstored listens.</summary>
    public const string SocketPath = "/run/xenstored/socket";

    private const uint Read = 2;
    private const int Header = 16;
    private const int MaxLength = 4096;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(2);

    private readonly Socket _socket;

    private XenStore(Socket socket) => _socket = socket;

    /// <summary>Connects to xenstored; null where none listens.</summary>
    public static XenStore? TryOpen(string path = SocketPath)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { SendTimeout = (int)s_patience.TotalMilliseconds, ReceiveTimeout = (int)s_patience.TotalMilliseconds };
        try
        {
            socket.Connect(new UnixDomainSocketEndPoint(path));
            return new XenStore(socket);
        }
        catch (SocketException)
        {
            socket.Dispose();
            return null;
        }
    }

    /// <summary>The name of a domain; empty where xenstored has none or does not answer.</summary>
    public string NameOf(uint domain)
    {
        try
        {
            var path = Encoding.ASCII.GetBytes($"/local/domain/{domain}/name\0");
            var message = new byte[Header + path.Length];
            BinaryPrimitives.WriteUInt32LittleEndian(message, Read);
            BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(4), domain);
            BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(12), (uint)path.Length);
            path.CopyTo(message, Header);
            _socket.Send(message);
            var header = Receive(Header);
            var length = BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(12));
            if (length > MaxLength) return "";
            var value = Receive((int)length);
            return BinaryPrimitives.ReadUInt32LittleEndian(header) == Read && BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(4)) == domain ? Encoding.UTF8.GetString(value).TrimEnd('\0') : "";
        }
        catch (Exception exception) when (exception is SocketException or EndOfStreamException)
        {
            return "";
        }
    }

    public void Dispose() => _socket.Dispose();

    private byte[] Receive(int length)
    {
        var bytes = new byte[length];
        for (int done = 0, count; done < length; done += count)
        {
            count = _socket.Receive(bytes, done, length - done, SocketFlags.None);
            if (count == 0) throw new EndOfStreamException();
        }

        return bytes;
    }
}
