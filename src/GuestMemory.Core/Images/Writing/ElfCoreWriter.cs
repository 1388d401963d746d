using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Images;

/// <summary>
/// Writes ELF core files of guest physical memory, as QEMU's <c>dump-guest-memory</c> does without paging (QEMU, <c>dump/dump.c</c>): ELF64, little-endian, ET_CORE; notes, and a segment PT_LOAD
/// for each region, of which p_paddr and p_vaddr are the guest address. The notes are NT_PRSTATUS for each CPU whose registers are given, and VMCOREINFO where the memory has the text of a
/// Linux kernel. Then the region with the kernel's image is cut into three, and p_vaddr of the image is where the kernel has it: so a debugger finds the kernel's page tables, and by them
/// everything else. Segments begin at multiples of a page in the file; pages of zeros are holes.
/// </summary>
public static class ElfCoreWriter
{
    private const int HeaderSize = 64;
    private const int SegmentSize = 56;
    private const int NoteSize = 12;
    private const int MaxSegments = 0xfffc;
    private const ushort EM_X86_64 = 62;
    private const ushort EM_AARCH64 = 183;

    // struct elf_prstatus
    private const int ProcessAt = 32;
    private const int RegistersAt = 112;

    private static ReadOnlySpan<byte> Identity => [0x7f, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1, 0];

    /// <summary>Writes the whole memory; the file is made beside its place and renamed when it is complete.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="digest">Whether to compute the file's SHA-256, and to write it beside the file (FILE.sha256).</param>
    /// <param name="options">What the file says besides; null for nothing.</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends the export; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile, TargetIsMapped; ValueNotSupported: another architecture, or registers of another one; TooBig: more than 65,531 regions; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo Write(GuestMemoryMmap memory, string path, bool overwrite, bool digest = false, ElfCoreOptions? options = null, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        options ??= new ElfCoreOptions();
        var given = MachineOf(options.Architecture ?? RuntimeInformation.ProcessArchitecture);
        foreach (var cpu in options.Registers)
        {
            if (cpu.Length != RegisterCount(given))
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A CPU of {(given == EM_X86_64 ? "x86-64" : "aarch64")} has {RegisterCount(given)} registers in a core file, and not {cpu.Length}.");
        }

        if (memory.Regions.Count >= MaxSegments) throw new GuestMemoryException(GuestMemoryError.TooBig, $"A core file has no room for {memory.Regions.Count} regions; {MaxSegments - 1} are the most.");
        return WholeImage.Write(memory, path, ImageFormat.ElfCore, overwrite, digest, isSparse: true, progress, cancellation, (output, reader) =>
        {
            var notes = new MemoryStream();
            for (var i = 0; i < options.Registers.Count; i++) WriteNote(notes, 1, "CORE"u8, Status(i, options.Registers[i].Span));
            // The notes come before the memory, as readers expect it; of the last one it is not known yet whether there is one, nor of the two more segments that come with it.
            output.Reserve((ulong)(HeaderSize + ((memory.Regions.Count + 3) * SegmentSize) + notes.Length + NoteSize + 12 + VmcoreInfo.MaxLength));
            var information = new VmcoreInfo();
            var segments = new List<Segment>(memory.Regions.Count + 2);
            foreach (var region in memory.Regions)
            {
                output.Align();
                segments.Add(new Segment(output.Position, region.GuestAddress, region.GuestAddress, region.Size));
                reader.Copy(region, (at, piece) =>
                {
                    information.Look(at, piece);
                    output.AppendPages(piece);
                });
            }

            if (information.Text is { } text) WriteNote(notes, 0, "VMCOREINFO"u8, text);
            if (information.KernelImage() is { } image) Cut(segments, image);
            var isGiven = options.Architecture is not null || options.Registers.Count > 0;
            var machine = isGiven || information.IsArm64 is not { } isArm64 ? given : isArm64 ? EM_AARCH64 : EM_X86_64;
            var header = Header(machine, segments, (int)notes.Length);
            output.Fill(header, 0);
            output.Fill(notes.GetBuffer().AsSpan(0, (int)notes.Length), (ulong)header.Length);
        });
    }

    /// <summary>Makes the image of a kernel a segment of its own, where it lies in one region.</summary>
    private static void Cut(List<Segment> segments, (ulong Address, ulong Virtual, ulong Size) image)
    {
        var index = segments.FindIndex(segment => image.Address >= segment.Address && image.Address - segment.Address < segment.Size && image.Size <= segment.Size - (image.Address - segment.Address));
        if (index < 0) return;
        var whole = segments[index];
        var before = image.Address - whole.Address;
        var past = before + image.Size;
        Segment[] parts =
        [
            whole with { Size = before },
            new Segment(whole.Offset + before, image.Virtual, image.Address, image.Size),
            new Segment(whole.Offset + past, whole.Virtual + past, whole.Address + past, whole.Size - past),
        ];
        segments.RemoveAt(index);
        segments.InsertRange(index, parts.Where(static part => part.Size > 0));
    }

    private static byte[] Header(ushort machine, List<Segment> segments, int notesSize)
    {
        var header = new byte[HeaderSize + ((1 + segments.Count) * SegmentSize)];
        Identity.CopyTo(header);
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(16), 4);   // ET_CORE
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(18), machine);
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(20), 1);
        BinaryPrimitives.WriteUInt64LittleEndian(header.AsSpan(32), HeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(52), HeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(54), SegmentSize);
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(56), (ushort)(1 + segments.Count));
        WriteSegment(header.AsSpan(HeaderSize), 4, 0, new Segment((ulong)header.Length, 0, 0, (ulong)notesSize));   // PT_NOTE
        for (var i = 0; i < segments.Count; i++) WriteSegment(header.AsSpan(HeaderSize + ((1 + i) * SegmentSize)), 1, 7, segments[i]);   // PT_LOAD
        return header;
    }

    private static void WriteSegment(Span<byte> target, uint type, uint flags, Segment segment)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(target, type);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], flags);
        BinaryPrimitives.WriteUInt64LittleEndian(target[8..], segment.Offset);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], segment.Virtual);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], segment.Address);
        BinaryPrimitives.WriteUInt64LittleEndian(target[32..], segment.Size);
        BinaryPrimitives.WriteUInt64LittleEndian(target[40..], segment.Size);
    }

    private static void WriteNote(MemoryStream notes, uint type, ReadOnlySpan<byte> name, ReadOnlySpan<byte> content)
    {
        Span<byte> header = stackalloc byte[NoteSize];
        BinaryPrimitives.WriteUInt32LittleEndian(header, (uint)name.Length + 1);
        BinaryPrimitives.WriteUInt32LittleEndian(header[4..], (uint)content.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(header[8..], type);
        notes.Write(header);
        notes.Write(name);
        notes.WriteByte(0);
        Pad();
        notes.Write(content);
        Pad();

        void Pad()
        {
            while (notes.Length % 4 != 0) notes.WriteByte(0);
        }
    }

    private static byte[] Status(int cpu, ReadOnlySpan<ulong> registers)
    {
        var status = new byte[RegistersAt + ((registers.Length + 1) * sizeof(ulong))];
        BinaryPrimitives.WriteInt32LittleEndian(status.AsSpan(ProcessAt), cpu + 1);
        for (var i = 0; i < registers.Length; i++) BinaryPrimitives.WriteUInt64LittleEndian(status.AsSpan(RegistersAt + (i * sizeof(ulong))), registers[i]);
        return status;
    }

    private static int RegisterCount(ushort machine) => machine == EM_X86_64 ? 27 : 34;

    private static ushort MachineOf(Architecture architecture) => architecture switch
    {
        Architecture.X64 => EM_X86_64,
        Architecture.Arm64 => EM_AARCH64,
        _ => throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A core file of a guest of {architecture} is not supported; X64 and Arm64 are."),
    };

    private readonly record struct Segment(ulong Offset, ulong Virtual, ulong Address, ulong Size);
}
