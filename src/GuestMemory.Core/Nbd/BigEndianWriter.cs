using System.Buffers;
using System.Buffers.Binary;

namespace GuestMemory.Core.Nbd;

/// <summary>Numbers one behind the other, as the protocol sends them.</summary>
internal sealed class BigEndianWriter
{
    private readonly ArrayBufferWriter<byte> _bytes = new();

    public BigEndianWriter Add(ushort value)
    {
        BinaryPrimitives.WriteUInt16BigEndian(_bytes.GetSpan(2), value);
        _bytes.Advance(2);
        return this;
    }

    public BigEndianWriter Add(uint value)
    {
        BinaryPrimitives.WriteUInt32BigEndian(_bytes.GetSpan(4), value);
        _bytes.Advance(4);
        return this;
    }

    public BigEndianWriter Add(ulong value)
    {
        BinaryPrimitives.WriteUInt64BigEndian(_bytes.GetSpan(8), value);
        _bytes.Advance(8);
        return this;
    }

    public BigEndianWriter Add(ReadOnlySpan<byte> bytes)
    {
        _bytes.Write(bytes);
        return this;
    }

    public byte[] ToArray() => _bytes.WrittenSpan.ToArray();
}
