using System.Buffers.Binary;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Writes BTF as Documentation/bpf/btf.rst has it. Types are numbered from 1.</summary>
internal sealed class BtfWriter
{
    private readonly MemoryStream _types = new();
    private readonly MemoryStream _strings = new();
    private uint _count;

    public BtfWriter() => _strings.WriteByte(0);

    public uint Name(string text)
    {
        if (text.Length == 0) return 0;
        var at = (uint)_strings.Length;
        _strings.Write(Encoding.ASCII.GetBytes(text + '\0'));
        return at;
    }

    public uint Add(string name, uint info, uint sizeOrType, params uint[] rest)
    {
        foreach (var word in (uint[])[Name(name), info, sizeOrType, .. rest])
        {
            _types.Write(BitConverter.GetBytes(word));
        }

        return ++_count;
    }

    /// <summary>A structure (kind 4) or union (5): names, types and offsets in bits.</summary>
    public uint Struct(string name, uint kind, params (string Name, uint Type, uint Bits)[] members) =>
        Add(name, kind << 24 | (uint)members.Length, 64, [.. members.SelectMany(member => (uint[])[Name(member.Name), member.Type, member.Bits])]);

    public byte[] Write()
    {
        var bytes = new byte[24];
        BinaryPrimitives.WriteUInt16LittleEndian(bytes, 0xeb9f);
        bytes[2] = 1;
        uint[] header = [24, 0, (uint)_types.Length, (uint)_types.Length, (uint)_strings.Length];
        for (var i = 0; i < header.Length; i++) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4 + (4 * i)), header[i]);
        return [.. bytes, .. _types.ToArray(), .. _strings.ToArray()];
    }
}
