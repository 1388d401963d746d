using System.Security.Cryptography;
using System.Text;
using GuestMemory.Core.Images;
using static GuestMemory.Core.Tests.ImageFiles;

namespace GuestMemory.Core.Tests;

/// <summary>Images of every format, written here by hand: what is read is what they hold, and what they say wrongly is refused.</summary>
public sealed class MemoryImageTests : IDisposable
{
    private const ulong MiB = 1 << 20;
    private const ulong GiB = 1UL << 30;

    private static readonly byte[] s_low = Content(5);
    private static readonly byte[] s_high = Content(40, first: 100);

    private readonly TestFolder _folder = new();
    private readonly List<GuestMemoryMmap> _opened = [];

    public static TheoryData<string> Formats => ["LiME", "Avml", "ElfCore", "ElfCore32", "Kdump", "KdumpZlib", "KdumpSnappy", "Kdump32", "KdumpFlat", "ElfCoreFlat"];

    public void Dispose()
    {
        foreach (var region in _opened.SelectMany(memory => memory.Regions)) region.Dispose();
        _folder.Dispose();
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void GivesTheBytesAtTheirGuestAddresses(string kind)
    {
        var memory = Open(Image(kind));
        AssertRanges(memory, (0x1000, s_low), (MiB, s_high));
        // Parts, from and to anywhere, also across blocks.
        var random = new Random(1);
        for (var i = 0; i < 200; i++)
        {
            var at = random.Next(s_high.Length);
            var part = new byte[random.Next(Math.Min(s_high.Length - at, 3 * Page)) + 1];
            memory.ReadExact(new GuestAddress(MiB + (ulong)at), part);
            Assert.True(s_high.AsSpan(at, part.Length).SequenceEqual(part), $"{part.Length} bytes at {at}");
        }

        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Fails(() => memory.ReadExact(new GuestAddress(0x6000), new byte[1])));
        Assert.Equal(GuestMemoryError.PageNotAccessible, Fails(() => memory.WriteExact(new GuestAddress(0x1000), new byte[1])));
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void RefusesEveryPartOfAnImage(string kind)
    {
        var whole = Image(kind);
        var random = new Random(2);
        for (var i = 0; i < 60; i++)
        {
            var part = whole[..(i < 30 ? whole.Length - 1 - i : random.Next(16, whole.Length))];
            File.WriteAllBytes(_folder["part"], part);
            try
            {
                var memory = Open("part");
                // What of a dump by pages is there may be read; what is missing is an error and not a signal.
                Assert.StartsWith("Kdump", kind, StringComparison.Ordinal);
                Assert.Equal(GuestMemoryError.PageNotAccessible, Fails(() => ReadAll(memory)));
            }
            catch (GuestMemoryException exception)
            {
                Assert.Equal(GuestMemoryError.InvalidImage, exception.Error);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void AnImageThatIsCutOffMeanwhileIsAnError(string kind)
    {
        File.WriteAllBytes(_folder["cut"], Image(kind));
        var memory = Open("cut");
        File.WriteAllBytes(_folder["cut2"], []);
        using (var file = File.OpenHandle(_folder["cut"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) RandomAccess.SetLength(file, 300);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Fails(() => ReadAll(memory)));
    }

    [Fact]
    public void MapsWhatLiesOnPages()
    {
        var header = 64 + (3 * 56);
        File.WriteAllBytes(_folder["elf"], Elf(wide: true, Page - header, (0x1000, s_low, (ulong)s_low.Length), (MiB, s_high, (ulong)s_high.Length)));
        var memory = Open("elf");
        Assert.All(memory.Regions, region => Assert.IsType<GuestRegionMmap>(region));
        Assert.All(memory.Regions, region => Assert.True(region.GetMemory().IsGuarded));
        Assert.Equal((ulong)Page, ((GuestRegionMmap)memory.Regions[0]).FileOffset);
        AssertRanges(memory, (0x1000, s_low), (MiB, s_high));
        using (var file = File.OpenHandle(_folder["elf"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) RandomAccess.SetLength(file, 300);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Fails(() => ReadAll(memory)));
    }

    [Fact]
    public void AddsTheZerosThatASegmentHasNotInTheFile()
    {
        File.WriteAllBytes(_folder["elf"], Elf(wide: true, 0, (0x1000, s_low, (ulong)s_low.Length + 8192)));
        AssertRanges(Open("elf"), (0x1000, [.. s_low, .. new byte[8192]]));
    }

    [Fact]
    public void JoinsRangesThatTouch()
    {
        File.WriteAllBytes(_folder["lime"], Lime((MiB, s_high), (0x1000, s_low[..Page]), (0x2000, s_low[Page..])));
        AssertRanges(Open("lime"), (0x1000, s_low), (MiB, s_high));
        File.WriteAllBytes(_folder["avml"], Avml((MiB, s_high), (0x1000, s_low[..Page]), (0x2000, s_low[Page..])));
        AssertRanges(Open("avml"), (0x1000, s_low), (MiB, s_high));
    }

    [Fact]
    public void CountsOnceWhatADumpHasTwice()
    {
        // As a dump with paging: another segment of the same bytes.
        var elf = Elf(wide: true, 0, (0x1000, s_low, (ulong)s_low.Length), (0x3000, [], 8192));
        Put(elf, 64 + (2 * 56) + 8, (ulong)(64 + (3 * 56) + 0x2000));
        Put(elf, 64 + (2 * 56) + 32, 8192UL);
        File.WriteAllBytes(_folder["elf"], elf);
        AssertRanges(Open("elf"), (0x1000, s_low));
    }

    [Fact]
    public void ReadsPagesThatWereLeftOutAsZeros()
    {
        var warnings = new List<string>();
        File.WriteAllBytes(_folder["dump"], Kdump(new Dictionary<int, byte[]?> { [1] = s_low[..Page], [2] = null, [3] = s_low[Page..(2 * Page)] }, Packing.Zlib));
        var memory = Open("dump", new ImageOpenOptions { Warning = warnings.Add });
        AssertRanges(memory, (0x1000, [.. s_low[..Page], .. new byte[Page], .. s_low[Page..(2 * Page)]]));
        Assert.Contains("4096 bytes", Assert.Single(warnings), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("Avml")]
    [InlineData("LiME")]
    public void ReadsBlocksThatAvmlLeftOutAsZeros(string kind)
    {
        var block = new byte[16 * MiB];
        s_high.CopyTo(block, 1000);
        // Two blocks behind the one at 1 MiB are missing; the other gaps are none of that size, or behind no whole block.
        (ulong, byte[])[] ranges = [(GiB + (36 * MiB), s_low), (MiB, block), (49 * MiB, s_low), (97 * MiB, s_low), (GiB, block)];
        File.WriteAllBytes(_folder["image"], kind == "Avml" ? Avml(ranges) : Lime(ranges));
        var warnings = new List<string>();
        var memory = Open("image", new ImageOpenOptions { Warning = warnings.Add, Verify = kind == "Avml" });
        AssertRanges(memory, (MiB, [.. block, .. new byte[32 * MiB], .. s_low]), (97 * MiB, s_low), (GiB, block), (GiB + (36 * MiB), s_low));
        Assert.Contains($"{32 * MiB} bytes", Assert.Single(warnings), StringComparison.Ordinal);
        // Over both ends of what is missing, and in it.
        foreach (var (at, size) in new[] { ((17 * MiB) - 50, 100), ((49 * MiB) - 50, 100), ((30 * MiB) + 7, 200_000) })
        {
            var (expected, read) = (new byte[size], new byte[size]);
            if (at > 48 * MiB) s_low.AsSpan(0, 50).CopyTo(expected.AsSpan(50));
            memory.ReadExact(new GuestAddress(at), read);
            Assert.True(expected.AsSpan().SequenceEqual(read), $"{size} bytes at 0x{at:x}");
        }
    }

    [Theory]
    [InlineData(ImageFormat.Avml)]
    [InlineData(ImageFormat.LiME)]
    public void AnExportHasItsRegionsWhateverIsZero(ImageFormat format)
    {
        // Regions of whole blocks with gaps of such between them, and one with blocks of zeros at its begin, in the middle and at its end.
        var memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0), 16 * MiB), (new GuestAddress(32 * MiB), 32 * MiB), (new GuestAddress(96 * MiB), 70 * MiB)]);
        _opened.Add(memory);
        memory.WriteExact(new GuestAddress(MiB), s_low);
        memory.WriteExact(new GuestAddress(33 * MiB), s_low);
        memory.WriteExact(new GuestAddress(113 * MiB), s_high);
        ImageWriting.Write(format, memory, _folder["image"]);
        var warnings = new List<string>();
        var read = Open("image", new ImageOpenOptions { Warning = warnings.Add });
        AssertRanges(read, [.. memory.Regions.Select(region =>
        {
            var bytes = new byte[region.Size];
            memory.ReadExact(new GuestAddress(region.GuestAddress), bytes);
            return (region.GuestAddress, bytes);
        })]);
        if (format == ImageFormat.Avml) Assert.Contains($"{32 * MiB} bytes", Assert.Single(warnings), StringComparison.Ordinal);
        else Assert.Empty(warnings);
    }

    [Fact]
    public void OpensAFlattenedDumpAsWhatItIsWhereItIsCalledRaw()
    {
        var flat = Image("ElfCoreFlat");
        File.WriteAllBytes(_folder["flat"], flat);
        AssertRanges(Open("flat", new ImageOpenOptions { Format = ImageFormat.Raw, Layout = ImageLayout.Flat }), (0, flat));
        // Also one that is damaged.
        File.WriteAllBytes(_folder["flat"], flat[..5000]);
        AssertRanges(Open("flat", new ImageOpenOptions { Format = ImageFormat.Raw, Layout = ImageLayout.Flat }), (0, flat[..5000]));
    }

    [Fact]
    public void GivesAPlainImageTheAddressesOfAMicroVm()
    {
        MakeSparse("vm.mem", (3 * GiB) + MiB, (0, 1), ((3 * GiB) - 1, 2), (3 * GiB, 3));
        var memory = Open("vm.mem", new ImageOpenOptions { Layout = ImageLayout.X64, Name = "vm" });
        Assert.Equal([(0UL, 3 * GiB, "vm-0"), (4 * GiB, MiB, "vm-1")], memory.Regions.Select(region => (region.GuestAddress, region.Size, region.Name)));
        Assert.Equal([1, 2, 3], new ulong[] { 0, (3 * GiB) - 1, 4 * GiB }.Select(address => ByteAt(memory, address)));
        Assert.All(memory.Regions, region => Assert.IsType<GuestRegionMmap>(region));

        var arm = Open("vm.mem", new ImageOpenOptions { Layout = ImageLayout.Arm64 });
        Assert.Equal([(2 * GiB, (3 * GiB) + MiB)], arm.Regions.Select(region => (region.GuestAddress, region.Size)));
        var flat = Open("vm.mem", new ImageOpenOptions { Layout = ImageLayout.Flat });
        Assert.Equal(3, ByteAt(flat, 3 * GiB));
        // What is not given is that of this machine.
        Assert.Equal(ImageLayout.Host == ImageLayout.X64 ? memory.Regions.Count : 1, Open("vm.mem").Regions.Count);
    }

    [Fact]
    public void LeavesOutTheSecondGapOfALargeMicroVm()
    {
        MakeSparse("large.mem", 300 * GiB, (0, 1), (255 * GiB, 2));
        var memory = Open("large.mem", new ImageOpenOptions { Layout = ImageLayout.X64 });
        Assert.Equal([(0UL, 3 * GiB), (4 * GiB, 252 * GiB), (512 * GiB, 45 * GiB)], memory.Regions.Select(region => (region.GuestAddress, region.Size)));
        Assert.Equal(2, ByteAt(memory, 512 * GiB));
        var arm = Open("large.mem", new ImageOpenOptions { Layout = ImageLayout.Arm64 });
        Assert.Equal([(2 * GiB, 254 * GiB), (512 * GiB, 46 * GiB)], arm.Regions.Select(region => (region.GuestAddress, region.Size)));
    }

    [Fact]
    public void TakesRangesThatAreGiven()
    {
        File.WriteAllBytes(_folder["mem"], s_high);
        ImageRange[] ranges = [new(0x10000, 3 * Page), new(0x1000, 2 * Page), new(0x90000, (ulong)s_high.Length - (5 * Page))];
        AssertRanges(Open("mem", new ImageOpenOptions { Layout = ImageLayout.FromRanges(ranges) }), (0x1000, s_high[(3 * Page)..(5 * Page)]), (0x10000, s_high[..(3 * Page)]), (0x90000, s_high[(5 * Page)..]));
        // From an offset that is on no page.
        AssertRanges(Open("mem", new ImageOpenOptions { Layout = ImageLayout.FromRanges([new(0x5000, 1000, 100)]) }), (0x5000, s_high[100..1100]));
        foreach (var wrong in new ImageRange[][] { [new(0, Page)], [new(0, (ulong)s_high.Length + 1)], [new(0, Page, (ulong)s_high.Length)], [new(0, Page, ulong.MaxValue)] })
            Assert.Equal(GuestMemoryError.LayoutMismatch, Fails(() => Open("mem", new ImageOpenOptions { Layout = ImageLayout.FromRanges(wrong) })));
        foreach (var wrong in new ImageRange[][] { [], [new(0, 0)], [new(ulong.MaxValue, 2)], [new(0, Page), new(1, Page)] })
            Assert.Equal(GuestMemoryError.LayoutMismatch, Fails(() => ImageLayout.FromRanges(wrong)));
        File.WriteAllBytes(_folder["lime"], Lime((0, s_low)));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Fails(() => Open("lime", new ImageOpenOptions { Layout = ImageLayout.Flat })));
    }

    [Fact]
    public void ReadsChunks()
    {
        foreach (var compression in Enum.GetValues<ChunkCompression>())
        {
            using var region = new GuestRegionMmap(new MmapRegionBuilder((ulong)s_high.Length).Build(), new GuestAddress(0));
            region.Write(new MemoryRegionAddress(0), s_high);
            ChunkedImage.Write(GuestMemoryMmap.FromRegions([region]), _folder["chunks"], overwrite: true, compression);
            AssertRanges(Open("chunks", new ImageOpenOptions { Layout = ImageLayout.Flat, Verify = true }), (0, s_high));
            AssertRanges(Open("chunks", new ImageOpenOptions { Layout = ImageLayout.FromRanges([new(0x5000, 5000), new(0x100000, (ulong)s_high.Length - 5000)]) }), (0x5000, s_high[..5000]), (0x100000, s_high[5000..]));
        }
    }

    [Theory]
    [InlineData("""{"snapshots":{"memory-manager":{"snapshots":{},"snapshot_data":{"state":{"memory_ranges":{"data":[RANGES]},"boot_ram":1}}}}}""")]
    [InlineData("""{"id":"vm","snapshots":{"cpu":{},"memory-manager":{"id":"memory-manager","snapshot_data":{"memory-manager-section":{"id":"x","snapshot":[BYTES]}}}}}""")]
    [InlineData("""{"snapshots":{"memory-manager":{"snapshot_data":{"state":"TEXT"}}}}""")]
    public void ReadsTheRangesOfCloudHypervisor(string state)
    {
        var ranges = $$"""{"gpa":0,"length":{{s_low.Length}}},{"gpa":4294967296,"length":{{s_high.Length}}}""";
        var inner = $$"""{"memory_ranges":{"data":[{{ranges}}]},"guest_ram_mappings":[]}""";
        File.WriteAllText(_folder["state.json"], state.Replace("RANGES", ranges, StringComparison.Ordinal)
            .Replace("BYTES", string.Join(',', Encoding.UTF8.GetBytes(inner)), StringComparison.Ordinal).Replace("TEXT", inner.Replace("\"", "\\\"", StringComparison.Ordinal), StringComparison.Ordinal));
        File.WriteAllBytes(_folder["memory-ranges"], [.. s_low, .. s_high]);
        Assert.Equal(ImageFormat.MemoryRanges, MemoryImage.FindFormat(_folder["memory-ranges"]));
        AssertRanges(Open("memory-ranges"), (0, s_low), (4 * GiB, s_high));
        File.WriteAllBytes(_folder["memory-ranges"], s_low);
        Assert.Equal(GuestMemoryError.LayoutMismatch, Fails(() => Open("memory-ranges")));
        File.WriteAllText(_folder["state.json"], """{"snapshots":{"memory-manager":{"snapshot_data":{"state":"no"}}}}""");
        Assert.Equal(GuestMemoryError.LayoutMismatch, Fails(() => Open("memory-ranges")));
        File.Delete(_folder["state.json"]);
        Assert.Equal(GuestMemoryError.LayoutMismatch, Fails(() => Open("memory-ranges", new ImageOpenOptions { Format = ImageFormat.MemoryRanges })));
        AssertRanges(Open("memory-ranges", new ImageOpenOptions { Format = ImageFormat.MemoryRanges, Layout = ImageLayout.Flat }), (0, s_low));
    }

    [Theory]
    [InlineData("QEVM\0\0\0\u0003", "QEMU")]
    [InlineData("LibvirtQemudSave\u0002", "libvirt")]
    [InlineData("LibvirtQemudPart\u0002", "libvirt")]
    [InlineData("\u0011\"3D\0\0\0\u0001", "multifd")]
    [InlineData("\u001f\u008b\b", "gzip")]
    [InlineData("(\u00b5/\u00fd", "zstd")]
    [InlineData("QFI\u00fb", "qcow2")]
    [InlineData("PAGEDU64", "Windows")]
    public void RefusesByNameWhatItDoesNotRead(string begin, string name)
    {
        File.WriteAllBytes(_folder["other"], [.. Encoding.Latin1.GetBytes(begin), .. new byte[8192]]);
        var exception = Assert.Throws<GuestMemoryException>(() => Open("other"));
        Assert.Equal(GuestMemoryError.ImageUnsupported, exception.Error);
        Assert.Contains(name, exception.Message, StringComparison.Ordinal);
        Assert.Equal((byte)begin[0], ByteAt(Open("other", new ImageOpenOptions { Format = ImageFormat.Raw, Layout = ImageLayout.Flat }), 0));
    }

    public static TheoryData<string, int, ulong, int, GuestMemoryError> Lies => new()
    {
        { "LiME", 4, 2, 4, GuestMemoryError.ImageUnsupported },
        { "LiME", 8, 0x100000, 8, GuestMemoryError.InvalidImage },
        { "LiME", 16, ulong.MaxValue, 8, GuestMemoryError.InvalidImage },
        { "LiME", 16, 1UL << 40, 8, GuestMemoryError.InvalidImage },
        { "LiME", 32 + (5 * Page) + 8, 0x2000, 8, GuestMemoryError.InvalidImage },
        { "Avml", 4, 3, 4, GuestMemoryError.ImageUnsupported },
        { "Avml", 16, 1UL << 40, 8, GuestMemoryError.InvalidImage },
        { "Avml", 16, 0x1fff, 8, GuestMemoryError.InvalidImage },
        { "Avml", 32, 0x02, 1, GuestMemoryError.InvalidImage },
        { "Avml", 33, 7, 1, GuestMemoryError.InvalidImage },
        { "ElfCore", 4, 3, 1, GuestMemoryError.InvalidImage },
        { "ElfCore", 5, 2, 1, GuestMemoryError.ImageUnsupported },
        { "ElfCore", 6, 2, 1, GuestMemoryError.ImageUnsupported },
        { "ElfCore", 16, 2, 2, GuestMemoryError.ImageUnsupported },
        { "ElfCore", 32, ulong.MaxValue, 8, GuestMemoryError.InvalidImage },
        { "ElfCore", 54, 57, 2, GuestMemoryError.InvalidImage },
        { "ElfCore", 56, 0xfffe, 2, GuestMemoryError.InvalidImage },
        { "ElfCore", 56, 1, 2, GuestMemoryError.InvalidImage },
        { "ElfCore", 64 + 56 + 8, ulong.MaxValue, 8, GuestMemoryError.InvalidImage },
        { "ElfCore", 64 + 56 + 24, 1UL << 52, 8, GuestMemoryError.InvalidImage },
        { "ElfCore", 64 + 56 + 24, MiB + 0x1000, 8, GuestMemoryError.InvalidImage },
        { "ElfCore", 64 + 56 + 32, ulong.MaxValue, 8, GuestMemoryError.InvalidImage },
        { "ElfCore", 64 + 56 + 40, 1UL << 53, 8, GuestMemoryError.InvalidImage },
        { "Kdump", 8, 7, 4, GuestMemoryError.ImageUnsupported },
        { "Kdump", 424, 2, 4, GuestMemoryError.ImageUnsupported },
        { "Kdump", 424, 0x20, 4, GuestMemoryError.ImageUnsupported },
        { "Kdump", 428, 1 << 30, 4, GuestMemoryError.InvalidImage },
        { "Kdump", 432, uint.MaxValue, 4, GuestMemoryError.InvalidImage },
        { "Kdump", 432, 0, 4, GuestMemoryError.InvalidImage },
        { "Kdump", 436, uint.MaxValue, 4, GuestMemoryError.InvalidImage },
        { "Kdump", 436, 0, 4, GuestMemoryError.InvalidImage },
        { "Kdump", Page + 12, 1, 4, GuestMemoryError.ImageUnsupported },
        { "Kdump", Page + 96, ulong.MaxValue, 8, GuestMemoryError.InvalidImage },
        { "Kdump", Page + 96, 1UL << 30, 8, GuestMemoryError.InvalidImage },
        { "KdumpFlat", 16, 2UL << 56, 8, GuestMemoryError.ImageUnsupported },
        { "KdumpFlat", Page, 0xff, 1, GuestMemoryError.InvalidImage },
        { "KdumpFlat", Page + 8, 0x7f, 1, GuestMemoryError.InvalidImage },
    };

    [Theory]
    [MemberData(nameof(Lies))]
    public void RefusesALieInAHeader(string kind, int at, ulong value, int size, GuestMemoryError error)
    {
        var bytes = Image(kind);
        for (var i = 0; i < size; i++) bytes[at + i] = (byte)(value >> (8 * i));
        File.WriteAllBytes(_folder["lie"], bytes);
        var descriptors = Descriptors();
        Assert.Equal(error, Fails(() => Open("lie")));
        Assert.Equal(descriptors, Descriptors());
    }

    [Theory]
    [InlineData("Avml", GuestMemoryError.InvalidImage)]
    [InlineData("KdumpZlib", GuestMemoryError.InvalidImage)]
    public void ADamagedBlockIsFoundWhenItIsReadOrVerified(string kind, GuestMemoryError verified)
    {
        var bytes = Image(kind);
        bytes[^2000] ^= 1;
        if (kind == "Avml") bytes[^9] ^= 1;
        // In zlib's pages: a byte of the last one that is compressed.
        if (kind == "KdumpZlib") bytes[^(Page + 20)] ^= 0xff;
        File.WriteAllBytes(_folder["damaged"], bytes);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Fails(() => ReadAll(Open("damaged"))));
        Assert.Equal(verified, Fails(() => Open("damaged", new ImageOpenOptions { Verify = true })));
    }

    [Fact]
    public void ComparesTheDigestThatLiesBesideIt()
    {
        var descriptors = Descriptors();
        File.WriteAllBytes(_folder["vm.mem"], s_high);
        var options = new ImageOpenOptions { Verify = true, Layout = ImageLayout.Flat };
        Assert.Equal(GuestMemoryError.DigestNotFound, Fails(() => Open("vm.mem", options)));
        var digest = Convert.ToHexStringLower(SHA256.HashData(s_high));
        File.WriteAllText(_folder["vm.mem.sha256"], $"{new string('0', 64)}  other.mem\n{digest} *vm.mem\n");
        AssertRanges(Open("vm.mem", options), (0, s_high));
        _opened.ForEach(memory => memory.Regions[0].Dispose());
        File.WriteAllText(_folder["vm.mem.sha256"], $"{digest}  other.mem\n");
        Assert.Equal(GuestMemoryError.DigestNotFound, Fails(() => Open("vm.mem", options)));
        File.WriteAllText(_folder["vm.mem.sha256"], $"{digest}  vm.mem\n");
        File.WriteAllBytes(_folder["vm.mem"], [.. s_high[..^1], 0]);
        Assert.Equal(GuestMemoryError.DigestMismatch, Fails(() => Open("vm.mem", options)));
        Assert.Equal(descriptors, Descriptors());
    }

    [Fact]
    public void ReadsNoDigestOfAnythingButAShortFile()
    {
        File.WriteAllBytes(_folder["vm.mem"], s_low);
        var options = new ImageOpenOptions { Verify = true, Layout = ImageLayout.Flat };
        File.CreateSymbolicLink(_folder["vm.mem.sha256"], "/dev/zero");
        Assert.Equal(GuestMemoryError.NotAFile, Fails(() => Open("vm.mem", options)));
        File.Delete(_folder["vm.mem.sha256"]);
        File.WriteAllText(_folder["vm.mem.sha256"], $"{Convert.ToHexStringLower(SHA256.HashData(s_low))}  vm.mem\n{new string('\n', 1 << 20)}");
        Assert.Equal(GuestMemoryError.DigestNotFound, Fails(() => Open("vm.mem", options)));
    }

    [Theory]
    [InlineData("ElfCore", true)]
    [InlineData("Avml", false)]
    public void ACancelledVerificationLeavesNothingOpen(string kind, bool hasDigest)
    {
        File.WriteAllBytes(_folder["image"], Image(kind));
        if (hasDigest) File.WriteAllText(_folder["image.sha256"], $"{Convert.ToHexStringLower(SHA256.HashData(Image(kind)))}  image\n");
        var descriptors = Descriptors();
        using var source = new CancellationTokenSource();
        var told = 0;
        Assert.ThrowsAny<OperationCanceledException>(() => MemoryImage.Open(_folder["image"], new ImageOpenOptions
        {
            Verify = true,
            Progress = (done, total) =>
            {
                Assert.True(done <= total);
                told++;
                source.Cancel();
            },
        }, source.Token));
        Assert.Equal(1, told);
        Assert.Equal(descriptors, Descriptors());
    }

    [Fact]
    public void KeepsWritersAwayWhileItIsOpen()
    {
        File.WriteAllBytes(_folder["vm.mem"], s_low);
        File.WriteAllBytes(_folder["vm.lime"], Lime((0, s_low)));
        foreach (var name in new[] { "vm.mem", "vm.lime" })
        {
            var memory = Open(name);
            Assert.Equal(GuestMemoryError.ImageInUse, Fails(() => RawImage.OpenBase(_folder[name], force: false).Dispose()));
            memory.Regions[0].Dispose();
            using (RawImage.OpenBase(_folder[name], force: false)) Assert.Equal(GuestMemoryError.ImageInUse, Fails(() => Open(name)));
        }
    }

    [Fact]
    public void RefusesWhatIsNoImage()
    {
        Assert.Equal(GuestMemoryError.ImageNotFound, Fails(() => Open("missing")));
        Assert.Equal(GuestMemoryError.NotAFile, Fails(() => MemoryImage.Open(_folder.Path)));
        File.WriteAllBytes(_folder["empty"], []);
        Assert.Equal(GuestMemoryError.InvalidImage, Fails(() => Open("empty")));
    }

    [Fact]
    public void ARemovedRegionIsNoLongerRead()
    {
        File.WriteAllBytes(_folder["avml"], Image("Avml"));
        var memory = Open("avml");
        memory.Regions[0].Dispose();
        Assert.Equal(GuestMemoryError.RegionDisposed, Fails(() => memory.ReadExact(new GuestAddress(0x1000), new byte[1])));
        // The other one has the file still.
        memory.ReadExact(new GuestAddress(MiB), new byte[1]);
    }

    private static byte[] Image(string kind) => kind switch
    {
        "LiME" => Lime((0x1000, s_low), (MiB, s_high)),
        "Avml" => Avml((0x1000, s_low), (MiB, s_high)),
        "ElfCore" => Elf(wide: true, 0, (0x1000, s_low, (ulong)s_low.Length), (MiB, s_high, (ulong)s_high.Length)),
        "ElfCore32" => Elf(wide: false, 0, (0x1000, s_low, (ulong)s_low.Length), (MiB, s_high, (ulong)s_high.Length)),
        "Kdump" => Kdump(Frames(), Packing.None),
        "KdumpZlib" => Kdump(Frames(), Packing.Zlib),
        "KdumpSnappy" => Kdump(Frames(), Packing.Snappy),
        "Kdump32" => Kdump(Frames(), Packing.Zlib, wide: false),
        "KdumpFlat" => Flatten(Kdump(Frames(), Packing.Zlib), 5000),
        "ElfCoreFlat" => Flatten(Elf(wide: true, 0, (0x1000, s_low, (ulong)s_low.Length), (MiB, s_high, (ulong)s_high.Length)), 3000),
        _ => throw new ArgumentOutOfRangeException(nameof(kind)),
    };

    private static Dictionary<int, byte[]?> Frames()
    {
        var frames = new Dictionary<int, byte[]?>();
        for (var i = 0; i < 5; i++) frames[1 + i] = s_low[(i * Page)..((i + 1) * Page)];
        for (var i = 0; i < 40; i++) frames[256 + i] = s_high[(i * Page)..((i + 1) * Page)];
        return frames;
    }

    private static void AssertRanges(GuestMemoryMmap memory, params (ulong Address, byte[] Bytes)[] ranges)
    {
        Assert.Equal(ranges.Select(range => (range.Address, (ulong)range.Bytes.Length)), memory.Regions.Select(region => (region.GuestAddress, region.Size)));
        foreach (var (address, bytes) in ranges)
        {
            var read = new byte[bytes.Length];
            memory.ReadExact(new GuestAddress(address), read);
            Assert.True(bytes.AsSpan().SequenceEqual(read), $"the range at 0x{address:x}");
        }
    }

    private static void ReadAll(GuestMemoryMmap memory)
    {
        foreach (var region in memory.Regions) memory.ReadExact(new GuestAddress(region.GuestAddress), new byte[region.Size]);
    }

    private static int ByteAt(GuestMemoryMmap memory, ulong address)
    {
        var one = new byte[1];
        memory.ReadExact(new GuestAddress(address), one);
        return one[0];
    }

    private static GuestMemoryError Fails(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    /// <summary>The descriptors of this process on files of the folder.</summary>
    private int Descriptors() => Directory.EnumerateFileSystemEntries("/proc/self/fd").Count(link => new FileInfo(link).LinkTarget?.StartsWith(_folder.Path, StringComparison.Ordinal) == true);

    private GuestMemoryMmap Open(byte[] image)
    {
        File.WriteAllBytes(_folder["image"], image);
        return Open("image");
    }

    private GuestMemoryMmap Open(string name, ImageOpenOptions? options = null)
    {
        var memory = MemoryImage.Open(_folder[name], options);
        _opened.Add(memory);
        return memory;
    }

    private void MakeSparse(string name, ulong length, params (ulong Offset, byte Value)[] bytes)
    {
        using var file = File.OpenHandle(_folder[name], FileMode.Create, FileAccess.Write);
        RandomAccess.SetLength(file, (long)length);
        foreach (var (offset, value) in bytes) RandomAccess.Write(file, [value], (long)offset);
    }
}
