using System.Buffers.Binary;
using System.Text;

namespace GuestMemory.Core.Linux;

/// <summary>
/// The types of a kernel, out of the BTF that it carries (CONFIG_DEBUG_INFO_BTF; Documentation/bpf/btf.rst): where the fields of its structures
/// are.
/// </summary>
internal sealed class BtfTypes
{
    /// <summary>The header's magic, version, flags and length, as those of a kernel begin.</summary>
    public static MemoryPattern Begin { get; } = MemoryPattern.FromBytes([0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0]);

    private const int HeaderSize = 24;

    // Anonymous structures in structures.
    private const int MaxDepth = 16;
    private const int MaxMembers = 100_000;

    private const int Pointer = 2, Array = 3, Struct = 4, Union = 5;

    private readonly byte[] _bytes;
    private readonly int _strings;
    private readonly int _stringsEnd;
    private readonly int[] _types;

    private BtfTypes(byte[] bytes, int strings, int stringsEnd, int[] types) => (_bytes, _strings, _stringsEnd, _types) = (bytes, strings, stringsEnd, types);

    /// <summary>The number of types.</summary>
    public int Count => _types.Length;

    /// <summary>How many bytes it has, by its header; null where there is none.</summary>
    public static long? SizeOf(ReadOnlySpan<byte> header)
    {
        if (header.Length < HeaderSize || BinaryPrimitives.ReadUInt16LittleEndian(header) != 0xeb9f || header[2] != 1) return null;
        long length = BinaryPrimitives.ReadUInt32LittleEndian(header[4..]);
        var size = length + Math.Max((long)Field(header, 8) + Field(header, 12), (long)Field(header, 16) + Field(header, 20));
        return length < HeaderSize || size > KernelData.MaxSize ? null : size;

        static uint Field(ReadOnlySpan<byte> header, int at) => BinaryPrimitives.ReadUInt32LittleEndian(header[at..]);
    }

    /// <summary>Reads it. The bytes are kept.</summary>
    /// <exception cref="GuestMemoryException">InvalidKernelData: it contradicts itself.</exception>
    public static BtfTypes Parse(byte[] bytes)
    {
        if (SizeOf(bytes) is not { } size || size > bytes.Length) throw KernelData.Invalid("The header of the kernel's BTF contradicts itself, or its size.");
        var header = (int)UInt(4);
        var (from, end) = (header + (int)UInt(8), header + (int)UInt(8) + (int)UInt(12));
        var (strings, stringsEnd) = (header + (int)UInt(16), header + (int)UInt(16) + (int)UInt(20));
        if (strings == stringsEnd || bytes[strings] != 0 || bytes[stringsEnd - 1] != 0) throw KernelData.Invalid("The strings of the kernel's BTF do not begin and end with NUL.");
        var types = new List<int>();
        for (var at = from; at < end;)
        {
            var rest = end - at - 12;
            var extra = rest < 0 ? -1 : Extra(UInt(at + 4));
            if (extra < 0 || extra > rest) throw KernelData.Invalid($"Type {types.Count + 1} of the kernel's BTF, at offset 0x{at:x}, is of an unknown kind or passes the end.");
            types.Add(at);
            at += 12 + extra;
        }

        return new BtfTypes(bytes, strings, stringsEnd, [.. types]);

        uint UInt(int at) => BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(at));
    }

    /// <summary>Where fields of a structure begin, in bytes, in the order of the names; null for one that it does not have. Those of anonymous structures in it count.</summary>
    /// <exception cref="GuestMemoryException">InvalidKernelData: the types have no such structure, or contradict themselves.</exception>
    public int?[] Offsets(string structure, params ReadOnlySpan<string> fields)
    {
        var found = new int?[fields.Length];
        var members = MaxMembers;
        var names = new byte[fields.Length][];
        for (var i = 0; i < fields.Length; i++) names[i] = Encoding.ASCII.GetBytes(fields[i]);
        Collect(Find(structure), 0, names, found, 0, ref members);
        return found;
    }

    private static int Extra(uint info)
    {
        var count = (int)(info & 0xffff);
        return (info >> 24 & 0x1f) switch
        {
            1 or 14 or 17 => 4,                    // INT, VAR, DECL_TAG
            2 or 7 or 8 or 9 or 10 or 11 or 12 or 16 or 18 => 0,   // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            3 => 12,                               // ARRAY
            4 or 5 or 15 or 19 => 12 * count,      // STRUCT, UNION, DATASEC, ENUM64
            6 or 13 => 8 * count,                  // ENUM, FUNC_PROTO
            _ => -1,
        };
    }

    private int Find(string structure)
    {
        var name = Encoding.ASCII.GetBytes(structure);
        foreach (var at in _types)
        {
            if (Kind(at) == Struct && Count16(at) > 0 && IsName(UInt(at), name)) return at;
        }

        throw KernelData.Invalid($"The kernel's BTF has no structure {structure}.");
    }

    private void Collect(int type, long start, byte[][] fields, int?[] found, int depth, ref int members)
    {
        var isBits = UInt(type + 4) >> 31 != 0;
        var count = Count16(type);
        if (depth > MaxDepth || (members -= count) < 0) throw KernelData.Invalid("The structures of the kernel's BTF are nested without end.");
        for (var i = 0; i < count; i++)
        {
            var member = type + 12 + (12 * i);
            var bits = UInt(member + 8);
            var offset = start + ((isBits ? bits & 0xffffff : bits) / 8);
            var name = UInt(member);
            if (IsName(name, []))
            {
                if (Resolve(UInt(member + 4)) is { } inner) Collect(inner, offset, fields, found, depth + 1, ref members);
                continue;
            }

            for (var field = 0; field < fields.Length; field++)
            {
                if (found[field] is null && offset < 1 << 20 && IsName(name, fields[field])) found[field] = (int)offset;
            }
        }
    }

    /// <summary>The structure or union that a type is.</summary>
    private int? Resolve(uint id)
    {
        // Behind qualifiers and names.
        for (var i = 0; i < MaxDepth; i++)
        {
            if (id == 0 || id > _types.Length) return null;
            var at = _types[(int)id - 1];
            if (Kind(at) is Struct or Union) return at;
            if (Kind(at) is Pointer or Array or not (8 or 9 or 10 or 11 or 18)) return null;
            id = UInt(at + 8);
        }

        return null;
    }

    private int Kind(int at) => (int)(UInt(at + 4) >> 24 & 0x1f);

    private int Count16(int at) => (int)(UInt(at + 4) & 0xffff);

    /// <summary>Whether a name is this one. Its end is not searched for: it may be far away, and each of a million types may have it.</summary>
    private bool IsName(uint offset, ReadOnlySpan<byte> name)
    {
        if (offset >= _stringsEnd - _strings) return name.IsEmpty;
        var text = _bytes.AsSpan(_strings + (int)offset, _stringsEnd - _strings - (int)offset);
        return text.Length > name.Length && text[name.Length] == 0 && text.StartsWith(name);
    }

    private uint UInt(int at) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes.AsSpan(at));
}
