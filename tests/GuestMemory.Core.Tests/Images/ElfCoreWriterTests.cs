using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>ELF core files, read by the gABI's chapters 4 and 5.</summary>
public sealed class ElfCoreWriterTests : IDisposable
{
    private const string Kernel = "OSRELEASE=6.1.0-test\nBUILD-ID=00\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a1d9c0\nNUMBER(phys_base)=16777216\n";
    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0), 0x2000UL), (new GuestAddress(0x100000), 0x301000UL), (new GuestAddress(0x100000000), 0x1800UL)]);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void EachRegionIsASegmentAtItsGuestAddress()
    {
        _memory.Write(new GuestAddress(0x1000), [1]);
        _memory.Write(new GuestAddress(0x400fff), [2]);
        _memory.Write(new GuestAddress(0x1000017ff), [3]);
        var info = ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false);
        var core = new Core(File.ReadAllBytes(_folder["core"]));
        Assert.Equal(RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 183 : 62, core.Machine);
        Assert.Empty(core.Notes);
        Assert.Equal([(0UL, 0x2000UL), (0x100000UL, 0x301000UL), (0x100000000UL, 0x1800UL)], core.Segments.Select(static segment => (segment.Address, segment.Size)));
        foreach (var (address, _, content) in core.Segments)
        {
            var expected = new byte[content.Length];
            _memory.ReadExact(new GuestAddress(address), expected);
            Assert.True(expected.AsSpan().SequenceEqual(content), $"0x{address:x}");
        }

        Assert.Equal(3, info.PageCount);
        using var file = File.OpenHandle(_folder["core"]);
        Assert.Equal(4 * 4096UL, FileStatus.Get(file).stx_blocks * 512);
    }

    [Fact]
    public void TheVmcoreInfoOfTheGuestIsANote()
    {
        // Texts that only begin so, and one that stands inside a page.
        _memory.Write(new GuestAddress(0x1000), "OSRELEASE=not a kernel\nPAGESIZE=4096\n"u8.ToArray());
        _memory.Write(new GuestAddress(0x200010), Encoding.ASCII.GetBytes(Kernel.Replace("6.1.0", "5.0.0", StringComparison.Ordinal)));
        _memory.Write(new GuestAddress(0x300000), [.. "OSRELEASE=\x01\nPAGESIZE=4096\nSYMBOL(x)=1\n"u8]);
        _memory.Write(new GuestAddress(0x400000), Encoding.ASCII.GetBytes(Kernel));
        ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false, options: new ElfCoreOptions { Architecture = Architecture.Arm64 });
        var core = new Core(File.ReadAllBytes(_folder["core"]));
        Assert.Equal(183, core.Machine);
        Assert.Equal(("VMCOREINFO", 0u, Kernel), (core.Notes.Single().Name, core.Notes[0].Type, Encoding.ASCII.GetString(core.Notes[0].Content)));
        Assert.Equal(3, core.Segments.Count);
    }

    [Theory]
    [InlineData("NUMBER(phys_base)", 62)]
    [InlineData("NUMBER(kimage_voffset)", 183)]
    public void TheArchitectureIsThatOfTheKernel(string name, int machine)
    {
        _memory.Write(new GuestAddress(0x400000), Encoding.ASCII.GetBytes(Kernel.Replace("NUMBER(phys_base)", name, StringComparison.Ordinal)));
        ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false);
        Assert.Equal(machine, new Core(File.ReadAllBytes(_folder["core"])).Machine);
    }

    [Theory]
    [InlineData("NUMBER(phys_base)=1056964608", 0xffffffff41000000UL)]
    [InlineData("NUMBER(phys_base)=-314572800", 0xffffffff92c00000UL)]
    [InlineData("NUMBER(kimage_voffset)=0xffff800008000000", 0xffff800008000000UL)]
    public void TheImageOfTheKernelIsWhereTheKernelHasIt(string number, ulong offset)
    {
        const ulong begin = 0x40000000;
        const ulong image = begin + 0x400000;
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0xc00000).Build(), new GuestAddress(begin));
        var memory = GuestMemoryMmap.FromRegions([_memory.Regions[0], region]);
        // The last symbol of the image is in its second piece of 2 MiB; the first one here is none of it.
        var symbols = $"SYMBOL(mem_section)=ffff0a2bdffb1000\nSYMBOL(_stext)={image + offset + 0x10000:x}\nSYMBOL(swapper_pg_dir)={image + offset + 0x210000:x}\n";
        memory.Write(new GuestAddress(begin + 0x1000), Encoding.ASCII.GetBytes($"OSRELEASE=6\nPAGESIZE=4096\n{symbols}{number}\n"));
        memory.Write(new GuestAddress(image), [1]);
        memory.Write(new GuestAddress(image + 0x400000), [2]);
        ElfCoreWriter.Write(memory, _folder["core"], overwrite: false);
        var core = new Core(File.ReadAllBytes(_folder["core"]), isPhysical: false);
        Assert.Equal([(0UL, 0x2000UL), (begin, 0x400000UL), (image, 0x400000UL), (image + 0x400000, 0x400000UL)], core.Segments.Select(static segment => (segment.Address, segment.Size)));
        Assert.Equal([0UL, begin, image + offset, image + 0x400000], core.Virtual);
        Assert.Equal((1, 2), (core.Segments[2].Content[0], core.Segments[3].Content[0]));
    }

    [Theory]
    [InlineData(Architecture.X64, 27, 336)]
    [InlineData(Architecture.Arm64, 34, 392)]
    public void RegistersAreNotesOfThreads(Architecture architecture, int count, int size)
    {
        _memory.Write(new GuestAddress(0x400000), Encoding.ASCII.GetBytes(Kernel));
        var cpus = Enumerable.Range(1, 2).Select(cpu => new ReadOnlyMemory<ulong>([.. Enumerable.Range(0, count).Select(register => ((ulong)cpu << 32) + (ulong)register)])).ToArray();
        ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false, options: new ElfCoreOptions { Architecture = architecture, Registers = cpus });
        var core = new Core(File.ReadAllBytes(_folder["core"]));
        Assert.Equal("CORE CORE VMCOREINFO", string.Join(' ', core.Notes.Select(static note => note.Name)));
        for (var cpu = 0; cpu < 2; cpu++)
        {
            var status = core.Notes[cpu].Content;
            Assert.Equal((1u, size, cpu + 1), (core.Notes[cpu].Type, status.Length, BinaryPrimitives.ReadInt32LittleEndian(status.AsSpan(32))));
            Assert.Equal(cpus[cpu].ToArray(), MemoryMarshal.Cast<byte, ulong>(status.AsSpan(112, count * 8)).ToArray());
        }
    }

    [Fact]
    public void RegistersOfAnotherArchitectureAreRefused()
    {
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false,
            options: new ElfCoreOptions { Architecture = Architecture.X64, Registers = [new ulong[34]] })).Error);
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => ElfCoreWriter.Write(_memory, _folder["core"], overwrite: false,
            options: new ElfCoreOptions { Architecture = Architecture.S390x })).Error);
        Assert.Empty(Directory.GetFiles(_folder.Path));
    }

    private sealed class Core
    {
        public Core(byte[] file, bool isPhysical = true)
        {
            Assert.Equal([0x7f, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], file[..16]);
            Assert.Equal((4, 1u, 64, 56), (Half(16), BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(20)), Half(52), Half(54)));
            Assert.Equal((0UL, 0UL), (Long(24), Long(40)));
            Machine = Half(18);
            for (var i = 0; i < Half(56); i++)
            {
                var at = (int)Long(32) + (i * 56);
                var offset = (int)Long(at + 8);
                var size = (int)Long(at + 32);
                if (BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at)) == 4)
                {
                    ReadNotes(file.AsSpan(offset, size));
                    continue;
                }

                Assert.Equal(1u, BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at)));
                Assert.Equal((ulong)size, Long(at + 40));
                if (isPhysical) Assert.Equal(Long(at + 24), Long(at + 16));
                Virtual.Add(Long(at + 16));
                Assert.Equal(0, offset % 4096);
                Segments.Add((Long(at + 24), (ulong)size, file[offset..(offset + size)]));
            }

            ushort Half(int at) => BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan(at));

            ulong Long(int at) => BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at));
        }

        public int Machine { get; }

        public List<(ulong Address, ulong Size, byte[] Content)> Segments { get; } = [];

        public List<ulong> Virtual { get; } = [];

        public List<(string Name, uint Type, byte[] Content)> Notes { get; } = [];

        private void ReadNotes(ReadOnlySpan<byte> notes)
        {
            while (!notes.IsEmpty)
            {
                var name = (int)BinaryPrimitives.ReadUInt32LittleEndian(notes);
                var content = (int)BinaryPrimitives.ReadUInt32LittleEndian(notes[4..]);
                var contentAt = 12 + ((name + 3) & ~3);
                Assert.Equal(0, notes[12 + name - 1]);
                Notes.Add((Encoding.ASCII.GetString(notes.Slice(12, name - 1)), BinaryPrimitives.ReadUInt32LittleEndian(notes[8..]), notes.Slice(contentAt, content).ToArray()));
                notes = notes[(contentAt + ((content + 3) & ~3))..];
            }
        }
    }
}
