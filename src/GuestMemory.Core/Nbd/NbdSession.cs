using System.Buffers.Binary;
using System.Text;
using static GuestMemory.Core.Nbd.NbdProtocol;

namespace GuestMemory.Core.Nbd;

/// <summary>
/// A client of an export, from the greeting on: fixed newstyle negotiation, then requests, answered one after the other by the thread that runs it. The client is not trusted: each length is checked before
/// anything is reserved for it, and what contradicts the protocol ends the connection.
/// </summary>
/// <param name="stream">The connection, which stays the caller's.</param>
/// <param name="name">The name of the export; the empty name is it, too.</param>
/// <param name="space">Its bytes.</param>
/// <param name="cancellation">Ends a read that waits for a page.</param>
internal sealed partial class NbdSession(Stream stream, string name, ExportSpace space, CancellationToken cancellation)
{
    private const int MaxOptions = 256;
    private const int MaxOption = 64 << 10;
    private const int MaxIgnored = 1 << 20;
    private const uint MetaContext = 1;
    private const string AllocationContext = "base:allocation";

    private readonly byte[] _received = new byte[16 << 10];
    private int _start, _end;
    private bool _omitsZeroes, _isStructured, _hasStatus;

    /// <summary>Called once with each error of the memory, by which a request failed.</summary>
    public Action<string>? Failed { get; init; }

    /// <summary>Told how many bytes of memory were sent.</summary>
    public Action<long>? Sent { get; init; }

    /// <summary>Called when the client begins to use the export; what it gives is disposed of at the end.</summary>
    public Func<IDisposable?>? Began { get; init; }

    /// <summary>Serves the client until it ends.</summary>
    /// <param name="negotiated">Called when the negotiation is over.</param>
    /// <exception cref="IOException">The connection ended or timed out; or memory could not be read in the middle of an answer.</exception>
    /// <exception cref="InvalidDataException">The client contradicts the protocol.</exception>
    public void Run(Action? negotiated = null)
    {
        if (!Negotiate()) return;
        negotiated?.Invoke();
        using var began = Began?.Invoke();
        while (Answer())
        {
        }
    }

    private static byte[] Bytes(Action<BigEndianWriter> write)
    {
        var writer = new BigEndianWriter();
        write(writer);
        return writer.ToArray();
    }

    /// <summary>False where the client wants no export.</summary>
    private bool Negotiate()
    {
        stream.Write(Bytes(static to => to.Add(NBDMAGIC).Add(IHAVEOPT).Add((ushort)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))));
        var flags = BinaryPrimitives.ReadUInt32BigEndian(Take(4));
        if ((flags & ~(uint)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) != 0) throw new InvalidDataException($"The client has flags that are not known, 0x{flags:x}.");
        _omitsZeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
        for (var count = 0; count < MaxOptions; count++)
        {
            var header = Take(16);
            if (BinaryPrimitives.ReadUInt64BigEndian(header) != IHAVEOPT) throw new InvalidDataException("The client sent no option.");
            var (option, length) = (BinaryPrimitives.ReadUInt32BigEndian(header[8..]), BinaryPrimitives.ReadUInt32BigEndian(header[12..]));
            if (length > MaxOption)
            {
                if (length > MaxIgnored || option == NBD_OPT_EXPORT_NAME) throw new InvalidDataException($"Option {option} has {length} bytes.");
                Ignore(length);
                Reply(option, NBD_REP_ERR_TOO_BIG, []);
                continue;
            }

            var data = new byte[length];
            Read(data);
            if (option == NBD_OPT_EXPORT_NAME)
            {
                if (!IsName(data)) throw new InvalidDataException("The client asks for an export that there is not.");
                stream.Write(Bytes(to => to.Add(space.Size).Add(Flags)));
                if (!_omitsZeroes) stream.Write(new byte[124]);
                return true;
            }

            if (option == NBD_OPT_ABORT)
            {
                Reply(option, NBD_REP_ACK, []);
                return false;
            }

            if (Execute(option, data)) return true;
        }

        throw new InvalidDataException("The client does not come to an end of its options.");
    }

    private ushort Flags => (ushort)(NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN | (_isStructured ? NBD_FLAG_SEND_DF : 0));

    private bool IsName(ReadOnlySpan<byte> asked) => asked.IsEmpty || asked.SequenceEqual(Encoding.UTF8.GetBytes(name));

    /// <summary>Executes an option; true where requests follow.</summary>
    private bool Execute(uint option, ReadOnlySpan<byte> data)
    {
        switch (option)
        {
            case NBD_OPT_LIST when data.IsEmpty:
                var bytes = Encoding.UTF8.GetBytes(name);
                Reply(option, NBD_REP_SERVER, Bytes(to => to.Add((uint)bytes.Length).Add(bytes)));
                Reply(option, NBD_REP_ACK, []);
                return false;
            case NBD_OPT_STRUCTURED_REPLY when data.IsEmpty:
                _isStructured = true;
                Reply(option, NBD_REP_ACK, []);
                return false;
            case NBD_OPT_INFO or NBD_OPT_GO:
                return Describe(option, data) && option == NBD_OPT_GO;
            case NBD_OPT_LIST_META_CONTEXT or NBD_OPT_SET_META_CONTEXT:
                SelectContexts(option, data);
                return false;
            default:
                Reply(option, option is NBD_OPT_LIST or NBD_OPT_STRUCTURED_REPLY ? NBD_REP_ERR_INVALID : NBD_REP_ERR_UNSUP, []);
                return false;
        }
    }

    private bool Describe(uint option, ReadOnlySpan<byte> data)
    {
        if (!TryTakeText(ref data, out var asked) || data.Length < 2 || data.Length != 2 + 2 * BinaryPrimitives.ReadUInt16BigEndian(data))
        {
            Reply(option, NBD_REP_ERR_INVALID, []);
            return false;
        }

        if (!IsName(asked))
        {
            Reply(option, NBD_REP_ERR_UNKNOWN, []);
            return false;
        }

        Reply(option, NBD_REP_INFO, Bytes(to => to.Add(NBD_INFO_EXPORT).Add(space.Size).Add(Flags)));
        for (data = data[2..]; !data.IsEmpty; data = data[2..])
        {
            switch (BinaryPrimitives.ReadUInt16BigEndian(data))
            {
                case NBD_INFO_NAME:
                    Reply(option, NBD_REP_INFO, Bytes(to => to.Add(NBD_INFO_NAME).Add(Encoding.UTF8.GetBytes(name))));
                    break;
                case NBD_INFO_BLOCK_SIZE:
                    Reply(option, NBD_REP_INFO, Bytes(static to => to.Add(NBD_INFO_BLOCK_SIZE).Add(1u).Add((uint)HostPage.Size).Add(MaxRequest)));
                    break;
            }
        }

        Reply(option, NBD_REP_ACK, []);
        return true;
    }

    private void SelectContexts(uint option, ReadOnlySpan<byte> data)
    {
        var isSet = option == NBD_OPT_SET_META_CONTEXT;
        if (isSet) _hasStatus = false;
        if (!TryTakeText(ref data, out var asked) || data.Length < 4 || !_isStructured)
        {
            Reply(option, NBD_REP_ERR_INVALID, []);
            return;
        }

        if (!IsName(asked))
        {
            Reply(option, NBD_REP_ERR_UNKNOWN, []);
            return;
        }

        var count = BinaryPrimitives.ReadUInt32BigEndian(data);
        data = data[4..];
        var isMeant = count == 0 && !isSet;
        for (; count > 0; count--)
        {
            if (!TryTakeText(ref data, out var query))
            {
                Reply(option, NBD_REP_ERR_INVALID, []);
                return;
            }

            isMeant |= query.SequenceEqual("base:allocation"u8) || (!isSet && query.SequenceEqual("base:"u8));
        }

        if (!data.IsEmpty)
        {
            Reply(option, NBD_REP_ERR_INVALID, []);
            return;
        }

        if (isMeant) Reply(option, NBD_REP_META_CONTEXT, Bytes(static to => to.Add(MetaContext).Add(Encoding.UTF8.GetBytes(AllocationContext))));
        if (isSet) _hasStatus = isMeant;
        Reply(option, NBD_REP_ACK, []);
    }

    private static bool TryTakeText(ref ReadOnlySpan<byte> data, out ReadOnlySpan<byte> text)
    {
        text = default;
        if (data.Length < 4 || BinaryPrimitives.ReadUInt32BigEndian(data) is var length && (length > MaxName || length > data.Length - 4)) return false;
        text = data.Slice(4, (int)length);
        data = data[(4 + (int)length)..];
        return true;
    }

    private void Reply(uint option, uint type, ReadOnlySpan<byte> data)
    {
        Span<byte> header = stackalloc byte[20];
        BinaryPrimitives.WriteUInt64BigEndian(header, NBD_REP_MAGIC);
        BinaryPrimitives.WriteUInt32BigEndian(header[8..], option);
        BinaryPrimitives.WriteUInt32BigEndian(header[12..], type);
        BinaryPrimitives.WriteUInt32BigEndian(header[16..], (uint)data.Length);
        stream.Write([.. header, .. data]);
    }

    /// <summary>The next bytes, until the next call.</summary>
    private ReadOnlySpan<byte> Take(int count)
    {
        if (_end - _start < count)
        {
            Buffer.BlockCopy(_received, _start, _received, 0, _end - _start);
            (_start, _end) = (0, _end - _start);
            while (_end < count)
            {
                var came = stream.Read(_received, _end, _received.Length - _end);
                if (came == 0) throw new EndOfStreamException();
                _end += came;
            }
        }

        _start += count;
        return _received.AsSpan(_start - count, count);
    }

    private void Read(Span<byte> data)
    {
        while (!data.IsEmpty)
        {
            var part = Take(Math.Min(data.Length, _received.Length));
            part.CopyTo(data);
            data = data[part.Length..];
        }
    }

    private void Ignore(uint count)
    {
        for (var left = (int)count; left > 0; left -= Math.Min(left, _received.Length)) Take(Math.Min(left, _received.Length));
    }
}
