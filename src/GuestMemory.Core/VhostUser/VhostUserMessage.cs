using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>A message that was received: header, payload and descriptors. Its disposal closes every descriptor that was not taken.</summary>
internal sealed class VhostUserMessage : IDisposable
{
    public const int MaxDescriptors = 32;

    private readonly List<SafeDescriptor> _descriptors = [];
    private byte[] _payload = [];

    private VhostUserMessage()
    {
    }

    public VhostUserHeader Header { get; private set; }

    public VhostUserRequest Request => Header.Request;

    public ReadOnlySpan<byte> Payload => _payload;

    public IReadOnlyList<SafeDescriptor> Descriptors => _descriptors;

    /// <summary>Waits for a message; null at the end of the stream.</summary>
    /// <exception cref="GuestMemoryException">InvalidMessage, PacketTooLarge, IncorrectFds; PartialMessage; Disconnected.</exception>
    public static VhostUserMessage? Receive(SafeDescriptor socket)
    {
        var message = new VhostUserMessage();
        try
        {
            Span<byte> header = stackalloc byte[VhostUserHeader.Length];
            if (!message.Fill(socket, header, canEnd: true))
            {
                message.Dispose();
                return null;
            }

            message.Header = MemoryMarshal.Read<VhostUserHeader>(header);
            message.Header.CheckRequest();
            message._payload = new byte[message.Header.Size];
            message.Fill(socket, message._payload, canEnd: false);
            return message;
        }
        catch
        {
            message.Dispose();
            throw;
        }
    }

    /// <summary>Sends a message, with descriptors that stay the caller's.</summary>
    /// <exception cref="GuestMemoryException">Disconnected.</exception>
    /// <exception cref="SyscallException">What sendmsg(2) says.</exception>
    public static void Send(SafeDescriptor socket, VhostUserRequest request, uint flags, ReadOnlySpan<byte> payload, ReadOnlySpan<int> descriptors = default)
    {
        var bytes = new byte[VhostUserHeader.Length + payload.Length];
        MemoryMarshal.Write(bytes, new VhostUserHeader(request, VhostUserHeader.Version | flags, (uint)payload.Length));
        payload.CopyTo(bytes.AsSpan(VhostUserHeader.Length));
        for (var done = 0; done < bytes.Length;)
        {
            var sent = UnixSocket.TrySend(socket, bytes.AsSpan(done), done == 0 ? descriptors : default);
            if (sent < 0) throw Failure("sendmsg", (int)-sent, $"Sending the message {request}");
            done += (int)sent;
        }
    }

    /// <summary>The payload as a structure; its size was checked (<see cref="VhostUserLayout"/>).</summary>
    public T Body<T>()
        where T : unmanaged => MemoryMarshal.Read<T>(_payload);

    /// <summary>Takes the ownership of the one descriptor; null where none came.</summary>
    public SafeDescriptor? TakeDescriptor()
    {
        if (_descriptors.Count == 0) return null;
        var descriptor = _descriptors[0];
        _descriptors.RemoveAt(0);
        return descriptor;
    }

    public void Dispose()
    {
        foreach (var descriptor in _descriptors) descriptor.Dispose();
        _descriptors.Clear();
    }

    private bool Fill(SafeDescriptor socket, Span<byte> buffer, bool canEnd)
    {
        for (var done = 0; done < buffer.Length;)
        {
            var received = UnixSocket.TryReceive(socket, buffer[done..], _descriptors, out var truncated, MaxDescriptors, wait: true);
            if (received < 0) throw Failure("recvmsg", (int)-received, "Receiving a message");
            if (truncated || _descriptors.Count > MaxDescriptors)
                throw new GuestMemoryException(GuestMemoryError.IncorrectFds, $"The message came with more than {MaxDescriptors} descriptors, or more than this process may open.");
            if (received == 0)
            {
                if (canEnd && done == 0) return false;
                throw new GuestMemoryException(GuestMemoryError.PartialMessage, "The front end closed the connection in the middle of a message.");
            }

            done += (int)received;
        }

        return true;
    }

    private static GuestMemoryException Failure(string function, int error, string attempted) => error is Errno.EPIPE or Errno.ECONNRESET
        ? new GuestMemoryException(GuestMemoryError.Disconnected, "The front end closed the connection.")
        : new SyscallException(function, error, attempted);
}
