using FsCheck;
using FsCheck.Fluent;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>firecracker-uffd.md 11.9, 11.10, 11.14, 11.15 and 11.18: what Firecracker's tests of its snapshot files demand.</summary>
public sealed class FirecrackerDumpTests : IDisposable
{
    private const int Page = 4096;
    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRegions([Region(0, 2), Region(3, 2)]);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    /// <summary>11.9: a whole dump, and the same memory again from the file.</summary>
    [Fact]
    public void AWholeDumpIsTheRegionsOneBehindTheOther()
    {
        FillPages();
        RawImage.WriteFull(_memory, _folder["dump"], overwrite: false);
        Assert.Equal([1, 1, 2, 2], PagesOf(_folder["dump"]));
        using var file = File.OpenHandle(_folder["dump"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        var again = GuestMemoryMmap.FromRanges([(new GuestAddress(0), 2 * Page, file, 0UL), (new GuestAddress(3 * Page), 2 * Page, file, 2UL * Page)]);
        RawImage.WriteFull(again, _folder["again"], overwrite: false);
        foreach (var region in again.Regions) region.Dispose();
        Assert.Equal(File.ReadAllBytes(_folder["dump"]), File.ReadAllBytes(_folder["again"]));
    }

    /// <summary>11.10 (i) to (iii): what the regions' own bitmaps mark or the kernel's logs, which are added to them before.</summary>
    [Fact]
    public void ADirtyDumpHasWhatEitherBitmapMarks()
    {
        FillPages();
        Mark(0b01, 0b10);
        RawImage.WriteDirty(_memory, _folder["i"], force: false);
        Assert.Equal([1, 1, 2, 2], PagesOf(_folder["i"]));
        Assert.Equal(0, _memory.Regions.Sum(static region => region.GetDirtyBitmap().DirtyCount));

        Write(1, 2);
        Mark(0b01, 0b10);
        RawImage.WriteDirty(_memory, _folder["ii"], force: false);
        Assert.Equal([1, 2, 0, 2], PagesOf(_folder["ii"]));

        Write(0, 2);
        Write(3, 1);
        using (var sized = File.OpenHandle(_folder["iii"], FileMode.CreateNew, FileAccess.Write)) RandomAccess.SetLength(sized, 4 * Page);
        RawImage.WriteDirty(_memory, _folder["iii"], force: false);
        Assert.Equal([2, 0, 1, 0], PagesOf(_folder["iii"]));
        using var file = File.OpenHandle(_folder["iii"]);
        Assert.Equal(2UL * Page, FileStatus.Get(file).stx_blocks * 512);
    }

    /// <summary>11.10 (iv): words that are too many or too few for the pages, and bits past the last one.</summary>
    [Theory]
    [InlineData(0b01UL, 1UL)]
    [InlineData(0b110UL)]
    [InlineData]
    public void ABitmapOfAnotherSizeIsRefused(params ulong[] words) =>
        Assert.ThrowsAny<ArgumentException>(() => new DirtyBitmap(3 * Page, 2 * Page, Page, words, "a log"));

    /// <summary>11.14, with the pages of a slot as a region: which ones a range has a part of. (A slot of Firecracker's hot-pluggable memory is a region here.)</summary>
    [Theory]
    [InlineData(0, 1, "0")]
    [InlineData(1, 1, "0")]
    [InlineData(5, 1, "1")]
    [InlineData(3, 2, "0,1")]
    [InlineData(0, 8, "0,1")]
    [InlineData(8, 1, "")]
    [InlineData(0, 0, "")]
    public void ARangeTouchesTheseSlots(int offset, int pages, string slots)
    {
        var memory = GuestMemoryMmap.FromRegions([Region(0, 4), Region(4, 4)]);
        // One byte a page is written, so that each slot that the range has a part of is marked.
        for (var page = offset; page < offset + pages; page++)
        {
            if (memory.AddressInRange(new GuestAddress((ulong)page * Page))) memory.Write(new GuestAddress((ulong)page * Page), [1]);
        }

        Assert.Equal(slots, string.Join(',', Enumerable.Range(0, 2).Where(slot => memory.Regions[slot].GetDirtyBitmap().DirtyCount > 0)));
        Assert.Equal(offset + pages <= 8, memory.CheckRange(new GuestAddress((ulong)offset * Page), (ulong)pages * Page));
        foreach (var region in memory.Regions) region.Dispose();
    }

    /// <summary>11.15: a range is there where every slot of it is. A range of no bytes is, too: upstream it is not inside an unplugged slot, which its own list of weaknesses has.</summary>
    [Theory]
    [InlineData(0, 0x100, true)]
    [InlineData(0x1000, 0x100, true)]
    [InlineData(0x2000, 0x100, false)]
    [InlineData(0x1800, 0x1000, false)]
    [InlineData(0x800, 0x1000, true)]
    [InlineData(0x3000, 0x100, true)]
    [InlineData(0x2000, 0, true)]
    public void ARangeIsPluggedWhereItsSlotsAre(ulong offset, ulong size, bool isPlugged)
    {
        var memory = GuestMemoryMmap.FromRegions([Region(0x100, 1), Region(0x101, 1), Region(0x103, 1)]);
        Assert.Equal(isPlugged, memory.CheckRange(new GuestAddress(0x100000 + offset), size));
        foreach (var region in memory.Regions) region.Dispose();
    }

    /// <summary>11.18: any regions and any marks, beside a writer that does one page after the other.</summary>
    [ModelProperty(256, typeof(Layouts))]
    public void ADirtyDumpIsAsOneThatGoesPageByPage(Layout layout)
    {
        var regions = new List<GuestMemoryRegion>();
        ulong next = 0;
        foreach (var part in layout.Parts)
        {
            var region = Region((int)next + part.Gap, part.Pages);
            next += (ulong)(part.Gap + part.Pages);
            region.GetMemory().AsVolatileSlice().CopyFrom(Enumerable.Repeat((byte)0xab, part.Pages * Page).ToArray().AsSpan());
            regions.Add(region);
        }

        try
        {
            var memory = GuestMemoryMmap.FromRegions(regions);
            var expected = new byte[regions.Sum(static region => (int)region.Size)];
            var dirty = 0;
            var at = 0;
            foreach (var region in regions) region.GetDirtyBitmap(clear: true);
            for (var i = 0; i < regions.Count; i++)
            {
                var part = layout.Parts[i];
                // The kernel's log: pages that a guest wrote.
                var words = new ulong[(part.Pages + 63) / 64];
                for (var page = 0; page < part.Pages; page++, at += Page)
                {
                    var isLogged = (part.Logged[page % part.Logged.Length] >> (page % 8) & 1) != 0;
                    var isWritten = (part.Written[page % part.Written.Length] >> (page % 7) & 1) != 0;
                    if (isLogged) words[page / 64] |= 1UL << (page % 64);
                    if (isWritten) memory.Write(new GuestAddress(regions[i].GuestAddress + (ulong)page * Page + 5), [0xcd]);
                    if (!isLogged && !isWritten) continue;
                    dirty++;
                    expected.AsSpan(at, Page).Fill(0xab);
                    if (isWritten) expected[at + 5] = 0xcd;
                }

                new DirtyBitmap(regions[i].GuestAddress, regions[i].Size, Page, words, "a log").MarkIn(regions[i].GetMemory().Bitmap!, regions[i].GuestAddress);
            }

            var info = RawImage.WriteDirty(memory, _folder["dump"], force: true);
            Assert.Equal((dirty, (ulong)expected.Length), ((int)info.PageCount, info.Size));
            Assert.True(expected.AsSpan().SequenceEqual(File.ReadAllBytes(_folder["dump"])));
            using (var file = File.OpenHandle(_folder["dump"])) Assert.Equal((long)dirty * Page, DataOf(file));
            Assert.Equal(0, regions.Sum(static region => region.GetDirtyBitmap().DirtyCount));
        }
        finally
        {
            foreach (var region in regions) region.Dispose();
            File.Delete(_folder["dump"]);
            File.Delete(_folder["dump.dirty"]);
        }
    }

    private static GuestRegionMmap Region(int page, int pages) =>
        new(new MmapRegionBuilder((ulong)pages * Page).WithDirtyTracking().Build(), new GuestAddress((ulong)page * Page));

    private void FillPages()
    {
        foreach (var (page, value) in ((int, byte)[])[(0, 1), (1, 1), (3, 2), (4, 2)]) Write(page, value);
    }

    private void Write(int page, byte value) => _memory.Write(new GuestAddress((ulong)page * Page), Enumerable.Repeat(value, Page).ToArray());

    private void Mark(params ulong[] logs)
    {
        for (var i = 0; i < logs.Length; i++)
        {
            var region = _memory.Regions[i];
            new DirtyBitmap(region.GuestAddress, region.Size, Page, [logs[i]], "a log").MarkIn(region.GetMemory().Bitmap!, region.GuestAddress);
        }
    }

    private static int[] PagesOf(string path) => [.. File.ReadAllBytes(path).Chunk(Page).Select(static page => Assert.Single(page.Distinct())).Select(static value => (int)value)];

    /// <summary>The bytes of a file that are no holes; its blocks would count what the file system notes about them, too.</summary>
    private static long DataOf(SafeFileHandle file)
    {
        var length = RandomAccess.GetLength(file);
        long data = 0;
        for (long at = 0; (at = Extents.NextData(file, at, length)) < length;)
        {
            var end = Extents.NextHole(file, at, length);
            data += end - at;
            at = end;
        }

        return data;
    }

    public sealed record Part(int Gap, int Pages, byte[] Logged, byte[] Written);

    public sealed record Layout(Part[] Parts);

    /// <summary>Up to three regions of up to 128 pages, with gaps of up to 8 pages.</summary>
    public static class Layouts
    {
        public static Arbitrary<Layout> Layout() => (
            from count in Gen.Choose(1, 3)
            from parts in Gen.ArrayOf(Parts(), count)
            select new Layout(parts)).ToArbitrary();

        private static Gen<Part> Parts() =>
            from gap in Gen.Choose(0, 8)
            from pages in Gen.Choose(1, 128)
            from logged in Bytes()
            from written in Bytes()
            select new Part(gap, pages, logged, written);

        private static Gen<byte[]> Bytes() => Gen.ArrayOf(Gen.Choose(0, 255).Select(static value => (byte)value), 16);
    }
}
