using System.Buffers.Binary;
using System.Text;
using static GuestMemory.Core.Nbd.NbdProtocol;

namespace GuestMemory.Core.Nbd;

/// <content>Requests. What is read goes into the buffer behind room for its header, and out in one piece with it.</content>
internal sealed partial class NbdSession
{
    private const int Piece = 1 << 20;
    private const int MaxExtents = 1024;

    // A header of a structured reply with an offset: what follows it is aligned as the memory is.
    private static readonly int s_room = (int)HostPage.Size;

    private byte[] _buffer = [];
    private bool _isOver;

    /// <summary>Answers a request; false after the last.</summary>
    private bool Answer()
    {
        var header = Take(28);
        if (BinaryPrimitives.ReadUInt32BigEndian(header) != NBD_REQUEST_MAGIC) throw new InvalidDataException("The client sent no request.");
        var request = new NbdRequest(BinaryPrimitives.ReadUInt16BigEndian(header[4..]), BinaryPrimitives.ReadUInt16BigEndian(header[6..]), BinaryPrimitives.ReadUInt64BigEndian(header[8..]),
            BinaryPrimitives.ReadUInt64BigEndian(header[16..]), BinaryPrimitives.ReadUInt32BigEndian(header[24..]));
        switch (request.Type)
        {
            case NBD_CMD_DISC:
                return false;
            case NBD_CMD_READ when IsInside(request) && request.Length > 0:
                if (request.Length > MaxRequest) Fail(request, NBD_EOVERFLOW, $"At most {MaxRequest} bytes can be read at once.");
                else if (_isStructured && (request.Flags & NBD_CMD_FLAG_DF) == 0) ReadInPieces(request);
                else ReadWhole(request);
                return !_isOver;
            case NBD_CMD_BLOCK_STATUS when _hasStatus && IsInside(request) && request.Length > 0:
                SendStatus(request);
                return true;
            case NBD_CMD_FLUSH:
                Succeed(request);
                return true;
            case NBD_CMD_WRITE:
                if (request.Length > MaxRequest) throw new InvalidDataException($"The client writes {request.Length} bytes at once.");
                Ignore(request.Length);
                Fail(request, NBD_EPERM, "The memory is exported read-only.");
                return true;
            case NBD_CMD_TRIM or NBD_CMD_WRITE_ZEROES:
                Fail(request, NBD_EPERM, "The memory is exported read-only.");
                return true;
            default:
                Fail(request, NBD_EINVAL, "The request is not known, or leaves the export.");
                return true;
        }
    }

    private bool IsInside(NbdRequest request) => request.Offset <= space.Size && request.Length <= space.Size - request.Offset;

    /// <summary>Each piece is a chunk, so that a hole is none of bytes, and an error in the middle can be told.</summary>
    private void ReadInPieces(NbdRequest request)
    {
        Span<byte> hole = stackalloc byte[32];
        for (uint done = 0; done < request.Length;)
        {
            var offset = request.Offset + done;
            var (address, length) = space.At(offset, request.Length - done);
            var flags = done + length == request.Length ? NBD_REPLY_FLAG_DONE : (ushort)0;
            if (address is null)
            {
                WriteChunk(hole, flags, NBD_REPLY_TYPE_OFFSET_HOLE, request.Cookie, 12);
                BinaryPrimitives.WriteUInt64BigEndian(hole[20..], offset);
                BinaryPrimitives.WriteUInt32BigEndian(hole[28..], (uint)length);
                stream.Write(hole);
            }
            else
            {
                var count = (int)Math.Min(length, Piece);
                if (count < (int)length) flags = 0;
                if (!TryRead(address.Value, count, s_room, out var reason))
                {
                    Fail(request, NBD_EIO, reason);
                    return;
                }

                var header = _buffer.AsSpan(s_room - 28, 28);
                WriteChunk(header, flags, NBD_REPLY_TYPE_OFFSET_DATA, request.Cookie, (uint)count + 8);
                BinaryPrimitives.WriteUInt64BigEndian(header[20..], offset);
                stream.Write(_buffer, s_room - 28, 28 + count);
                Sent?.Invoke(count);
                length = (ulong)count;
            }

            done += (uint)length;
        }
    }

    /// <summary>One answer for all: only before its first byte can it be an error, later it is the end of the connection.</summary>
    private void ReadWhole(NbdRequest request)
    {
        for (uint done = 0; done < request.Length;)
        {
            var count = (int)Math.Min(request.Length - done, Piece);
            for (var filled = 0; filled < count;)
            {
                var (address, length) = space.At(request.Offset + done + (uint)filled, (ulong)(count - filled));
                if (address is null)
                {
                    Reserve();
                    _buffer.AsSpan(s_room + filled, (int)length).Clear();
                }
                else if (!TryRead(address.Value, (int)length, s_room + filled, out var reason))
                {
                    if (done > 0) throw new IOException(reason);
                    Fail(request, NBD_EIO, reason);
                    return;
                }

                filled += (int)length;
            }

            var room = done > 0 ? 0 : _isStructured ? 28 : 16;
            if (room == 28)
            {
                WriteChunk(_buffer.AsSpan(s_room - room), NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, request.Cookie, request.Length + 8);
                BinaryPrimitives.WriteUInt64BigEndian(_buffer.AsSpan(s_room - 8), request.Offset);
            }
            else if (room == 16)
            {
                WriteSimple(_buffer.AsSpan(s_room - room), 0, request.Cookie);
            }

            stream.Write(_buffer, s_room - room, room + count);
            Sent?.Invoke(count);
            done += (uint)count;
        }
    }

    private void SendStatus(NbdRequest request)
    {
        var extents = new List<(uint Length, uint Flags)>();
        var most = (request.Flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : MaxExtents;
        for (uint done = 0; done < request.Length;)
        {
            var (address, length) = space.At(request.Offset + done, request.Length - done);
            var flags = address is null ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
            if (extents.Count > 0 && extents[^1].Flags == flags) extents[^1] = (extents[^1].Length + (uint)length, flags);
            else if (extents.Count == most) break;
            else extents.Add(((uint)length, flags));
            done += (uint)length;
        }

        var reply = new byte[20 + 4 + 8 * extents.Count];
        WriteChunk(reply, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, request.Cookie, (uint)reply.Length - 20);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(20), MetaContext);
        for (var i = 0; i < extents.Count; i++)
        {
            BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(24 + 8 * i), extents[i].Length);
            BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(28 + 8 * i), extents[i].Flags);
        }

        stream.Write(reply);
    }

    private void Succeed(NbdRequest request)
    {
        Span<byte> reply = stackalloc byte[20];
        if (_isStructured) WriteChunk(reply, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, request.Cookie, 0);
        else WriteSimple(reply, 0, request.Cookie);
        stream.Write(reply[..(_isStructured ? 20 : 16)]);
    }

    private void Fail(NbdRequest request, uint error, string reason)
    {
        Span<byte> reply = stackalloc byte[26];
        if (!_isStructured)
        {
            WriteSimple(reply, error, request.Cookie);
            stream.Write(reply[..16]);
            return;
        }

        var text = Encoding.UTF8.GetBytes(reason.Length > 500 ? reason[..500] : reason);
        WriteChunk(reply, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, request.Cookie, 6 + (uint)text.Length);
        BinaryPrimitives.WriteUInt32BigEndian(reply[20..], error);
        BinaryPrimitives.WriteUInt16BigEndian(reply[24..], (ushort)text.Length);
        stream.Write([.. reply, .. text]);
    }

    private bool TryRead(ulong address, int count, int place, out string reason)
    {
        Reserve();
        try
        {
            space.Memory.ReadExact(new GuestAddress(address), _buffer.AsMemory(place, count), cancellation);
            reason = "";
            return true;
        }
        catch (GuestMemoryException exception)
        {
            reason = exception.Message;
            Failed?.Invoke(reason);
            if (exception.Error == GuestMemoryError.HandlerGone)
            {
                // The read was abandoned and may still fill the buffer: no answer goes out of that one.
                _buffer = [];
                _isOver = true;
            }

            return false;
        }
    }

    private void Reserve()
    {
        if (_buffer.Length == 0) _buffer = GC.AllocateUninitializedArray<byte>(s_room + Piece, pinned: true);
    }

    private static void WriteChunk(Span<byte> header, ushort flags, ushort type, ulong cookie, uint length)
    {
        BinaryPrimitives.WriteUInt32BigEndian(header, NBD_STRUCTURED_REPLY_MAGIC);
        BinaryPrimitives.WriteUInt16BigEndian(header[4..], flags);
        BinaryPrimitives.WriteUInt16BigEndian(header[6..], type);
        BinaryPrimitives.WriteUInt64BigEndian(header[8..], cookie);
        BinaryPrimitives.WriteUInt32BigEndian(header[16..], length);
    }

    private static void WriteSimple(Span<byte> header, uint error, ulong cookie)
    {
        BinaryPrimitives.WriteUInt32BigEndian(header, NBD_SIMPLE_REPLY_MAGIC);
        BinaryPrimitives.WriteUInt32BigEndian(header[4..], error);
        BinaryPrimitives.WriteUInt64BigEndian(header[8..], cookie);
    }
}
