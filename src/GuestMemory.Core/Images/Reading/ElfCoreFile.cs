using System.Buffers.Binary;

namespace GuestMemory.Core.Images;

/// <summary>
/// An ELF core file of a machine: each PT_LOAD is memory at its p_paddr (elf(5)). Of 32 or 64 bits, as QEMU's dump-guest-memory chooses by the state of
/// the guest's CPU. Where segments name the same bytes twice (a dump with paging) they count once.
/// </summary>
internal static class ElfCoreFile
{
    private const int EI_CLASS = 4;
    private const int EI_DATA = 5;
    private const int EI_VERSION = 6;
    private const int ELFDATA2LSB = 1;
    private const int ET_CORE = 4;
    private const uint PT_LOAD = 1;
    private const uint PN_XNUM = 0xffff;
    private const ulong MaxSegments = 1 << 20;

    public static ReadOnlySpan<byte> Magic => [0x7f, (byte)'E', (byte)'L', (byte)'F'];

    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: no core file, or one of a process.</exception>
    public static List<ImageExtent> Read(ImageBytes image)
    {
        var path = image.Path;
        Span<byte> header = stackalloc byte[64];
        image.ReadExact(0, header[..16]);
        if (!header[..4].SequenceEqual(Magic)) throw MemoryImage.Invalid(path, "it does not begin as an ELF file does");
        if (header[EI_CLASS] is not (1 or 2)) throw MemoryImage.Invalid(path, $"its class ({header[EI_CLASS]}) is neither 32 nor 64 bits");
        var wide = header[EI_CLASS] == 2;
        if (header[EI_DATA] != ELFDATA2LSB) throw MemoryImage.Unsupported(path, "a big-endian ELF file");
        if (header[EI_VERSION] != 1) throw MemoryImage.Unsupported(path, $"an ELF file of version {header[EI_VERSION]}");
        header = header[..(wide ? 64 : 52)];
        image.ReadExact(0, header);
        var type = BinaryPrimitives.ReadUInt16LittleEndian(header[16..]);
        if (type != ET_CORE) throw MemoryImage.Unsupported(path, $"an ELF file that is no core file (e_type {type})");

        var tableAt = wide ? BinaryPrimitives.ReadUInt64LittleEndian(header[32..]) : BinaryPrimitives.ReadUInt32LittleEndian(header[28..]);
        var entrySize = BinaryPrimitives.ReadUInt16LittleEndian(header[(wide ? 54 : 42)..]);
        ulong count = BinaryPrimitives.ReadUInt16LittleEndian(header[(wide ? 56 : 44)..]);
        if (entrySize != (wide ? 56 : 32)) throw MemoryImage.Invalid(path, $"its program headers have {entrySize} bytes");
        if (count == PN_XNUM) count = CountInSection(image, header, wide);
        if (count > MaxSegments || tableAt > image.Length || count * entrySize > image.Length - tableAt) throw MemoryImage.Invalid(path, $"its {count} program headers are not in the file");
        var table = new byte[count * entrySize];
        image.ReadExact(tableAt, table);
        return Segments(image, table, entrySize, wide);
    }

    private static List<ImageExtent> Segments(ImageBytes image, ReadOnlySpan<byte> table, int entrySize, bool wide)
    {
        var extents = new List<ImageExtent>();
        for (; !table.IsEmpty; table = table[entrySize..])
        {
            if (BinaryPrimitives.ReadUInt32LittleEndian(table) != PT_LOAD) continue;
            var (offset, address, stored, size) = wide
                ? (Wide(table, 8), Wide(table, 24), Wide(table, 32), Wide(table, 40))
                : (Narrow(table, 4), Narrow(table, 12), Narrow(table, 16), Narrow(table, 20));
            if (size == 0) continue;
            if (stored > size) throw MemoryImage.Invalid(image.Path, $"its segment at 0x{address:x} has more bytes in the file than in memory");
            if (stored > 0 && (offset > image.Length || stored > image.Length - offset)) throw MemoryImage.Invalid(image.Path, $"its segment at 0x{address:x} reaches past the end of the file; the dump may not have been completed");
            extents.Add(new ImageExtent(address, size, offset, stored));
        }

        return extents.Count > 1 && extents.TrueForAll(static extent => extent.Address == 0)
            ? throw MemoryImage.Unsupported(image.Path, "the core file of a process, whose segments have no physical addresses")
            : extents;

        static ulong Wide(ReadOnlySpan<byte> entry, int at) => BinaryPrimitives.ReadUInt64LittleEndian(entry[at..]);

        static ulong Narrow(ReadOnlySpan<byte> entry, int at) => BinaryPrimitives.ReadUInt32LittleEndian(entry[at..]);
    }

    /// <summary>More segments than fit in e_phnum are counted in the first section header.</summary>
    private static ulong CountInSection(ImageBytes image, ReadOnlySpan<byte> header, bool wide)
    {
        var at = wide ? BinaryPrimitives.ReadUInt64LittleEndian(header[40..]) : BinaryPrimitives.ReadUInt32LittleEndian(header[32..]);
        var info = wide ? 44UL : 28UL;
        if (at > image.Length || info + sizeof(uint) > image.Length - at) throw MemoryImage.Invalid(image.Path, "the section header that counts its segments is not in the file");
        Span<byte> count = stackalloc byte[sizeof(uint)];
        image.ReadExact(at + info, count);
        return BinaryPrimitives.ReadUInt32LittleEndian(count);
    }
}
