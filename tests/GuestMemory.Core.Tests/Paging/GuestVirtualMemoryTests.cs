namespace GuestMemory.Core.Tests;

/// <summary>Virtual addresses by tables that the tests write, as the Intel SDM and the Arm ARM lay them out.</summary>
public sealed class GuestVirtualMemoryTests : IDisposable
{
    // Present, writable, user, accessed; and no-execute in leaves, which is bit 63.
    private const ulong Table = 0x27;
    private const ulong Leaf = 0x8000_0000_0000_0067;
    private const ulong Large = 1 << 7;

    private readonly PageTables _tables = new();

    public void Dispose() => _tables.Dispose();

    [Fact]
    public void FourLevelsMapPagesOfEverySize()
    {
        var page = _tables.Page();
        _tables.Map(PageTables.Root, Table, page | Leaf, 511, 510, 8, 3);
        _tables.Map(PageTables.Root, Table, 0x4020_0000 | Leaf | Large | 0x1000, 511, 510, 9);   // with the bit of PAT
        _tables.Map(PageTables.Root, Table, 0x8000_0000 | Leaf | Large, 0, 5);
        var space = Space(PageTableFormat.X64());
        Check(space, 0xffffffff_81003123, page + 0x123, 0x1000);
        Check(space, 0xffffffff_81345678, 0x4034_5678, 0x20_0000);
        Check(space, 0x1_7654_3210, 0xb654_3210, 0x4000_0000);
        // The register has more than the address: flags, a PCID, bit 63 of a MOV to CR3.
        Check(new GuestVirtualMemory(_tables.Memory, PageTables.Root | 0x8000_0000_0000_0fff, PageTableFormat.X64()), 0xffffffff_81003123, page + 0x123, 0x1000);
    }

    [Fact]
    public void FiveLevelsMapWhatFourCannot()
    {
        var page = _tables.Page();
        _tables.Map(PageTables.Root, Table, page | Leaf, 0x111, 0x22, 0x133, 0x44, 0x155);
        var address = 0xff00_0000_0000_0000 | 0x111UL << 48 | 0x22UL << 39 | 0x133UL << 30 | 0x44UL << 21 | 0x155UL << 12 | 0xabc;
        Check(Space(PageTableFormat.X64(5)), address, page + 0xabc, 0x1000);
        Fails(Space(PageTableFormat.X64()), address, GuestMemoryError.AddressNotCanonical, "48 bits");
        Fails(Space(PageTableFormat.X64(5)), 0x0100_0000_0000_0000, GuestMemoryError.AddressNotCanonical, "57 bits");
        Fails(Space(PageTableFormat.X64()), 0x8000_0000_0000, GuestMemoryError.AddressNotCanonical, "48 bits");
        Assert.Equal(5, GuestVirtualMemory.Detect(_tables.Memory, PageTables.Root, GuestArchitecture.X64, address, TestContext.Current.CancellationToken).Format.Levels);
    }

    [Fact]
    public void TheNumberOfLevelsIsFoundWhereOneFits()
    {
        var page = _tables.Page();
        _tables.Map(PageTables.Root, Table, page | Leaf, 511, 510, 8, 3);
        Assert.Equal(4, GuestVirtualMemory.Detect(_tables.Memory, PageTables.Root, GuestArchitecture.X64, 0xffffffff_81003000, TestContext.Current.CancellationToken).Format.Levels);
        // What neither maps gives the error of four.
        var error = Assert.Throws<GuestMemoryException>(() => GuestVirtualMemory.Detect(_tables.Memory, PageTables.Root, GuestArchitecture.X64, 0xffffffff_81004000, TestContext.Current.CancellationToken));
        Assert.Equal(GuestMemoryError.PageNotPresent, error.Error);
        Assert.Contains("entry 4 of the PT", error.Message, StringComparison.Ordinal);
        // A table that refers to itself has as many levels as one likes.
        _tables.Set(PageTables.Root, 0, PageTables.Root | Table);
        error = Assert.Throws<GuestMemoryException>(() => GuestVirtualMemory.Detect(_tables.Memory, PageTables.Root, GuestArchitecture.X64, 0, TestContext.Current.CancellationToken));
        Assert.Equal(GuestMemoryError.PageTableAmbiguous, error.Error);
    }

    [Theory]
    [InlineData(0xffffffff_81003000, "entry 510 of the PDPT")]
    [InlineData(0xffffff80_00000000, "entry 0 of the PDPT")]
    [InlineData(0x0000_1234_5678_9000, "entry 36 of the PML4 at guest address 0x100000 is not present (0x0)")]
    public void AnEntryThatIsNotPresentIsNamed(ulong address, string what)
    {
        _tables.Set(PageTables.Root, 511, _tables.Page() | Table);
        var space = Space(PageTableFormat.X64());
        Fails(space, address, GuestMemoryError.PageNotPresent, what);
        Assert.Null(space.TryTranslate(address, TestContext.Current.CancellationToken));
    }

    [Fact]
    public void TablesOutsideTheMemoryAndReservedBitsAreNamed()
    {
        _tables.Set(PageTables.Root, 1, 0x9999_9000 | Table);
        _tables.Set(PageTables.Root, 2, _tables.Page() | Table | Large);   // a page of 512 GiB
        _tables.Map(PageTables.Root, Table, 0x4000_2000 | Leaf | Large, 3, 0);   // between the bit of PAT and the address
        var space = Space(PageTableFormat.X64());
        Fails(space, 1UL << 39, GuestMemoryError.PageTableNotMapped, "entry 0 of the PDPT at guest address 0x99999000 lies outside the memory");
        Fails(space, 2UL << 39, GuestMemoryError.PageTableInvalid, "entry 2 of the PML4");
        Fails(space, 3UL << 39, GuestMemoryError.PageTableInvalid, "entry 0 of the PDPT");
        Fails(new GuestVirtualMemory(_tables.Memory, 0x7000, PageTableFormat.X64()), 0, GuestMemoryError.PageTableNotMapped, "PML4 at guest address 0x7000");
        // The memory ends in the table.
        Fails(new GuestVirtualMemory(_tables.Memory, ulong.MaxValue, PageTableFormat.X64()), 0, GuestMemoryError.PageTableNotMapped, "lies outside the memory");
    }

    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public void ATableThatRefersToItselfEnds(int levels)
    {
        _tables.Set(PageTables.Root, 0x1ff, PageTables.Root | Table);
        var space = Space(PageTableFormat.X64(levels));
        // By itself at every level: the table is the page.
        Check(space, 0xffff_ffff_ffff_fff8, PageTables.Root + 0xff8, 0x1000);
        Assert.Equal(PageTables.Root | Table, space.ReadObject<ulong>(0xffff_ffff_ffff_fff8, TestContext.Current.CancellationToken));
    }

    [Fact]
    public void ReadsCrossPagesOfEveryKind()
    {
        // Four pages in the wrong order, the last of them in the next table, and then nothing.
        var pages = Enumerable.Range(0, 4).Select(_ => _tables.Page()).Reverse().ToArray();
        for (var i = 0; i < 4; i++)
        {
            _tables.Map(PageTables.Root, Table, pages[i] | Leaf, 0, 0, i < 3 ? 0UL : 1UL, i < 3 ? 509 + (ulong)i : 0);
            _tables.Memory.WriteExact(new GuestAddress(pages[i]), Enumerable.Range(0, 4096).Select(at => (byte)(at * 7 + i)).ToArray());
        }

        var space = Space(PageTableFormat.X64());
        const ulong Start = 509 << 12;
        var bytes = new byte[4 * 4096 - 1];
        space.ReadExact(Start + 1, bytes, TestContext.Current.CancellationToken);
        Assert.Equal(Enumerable.Range(1, bytes.Length).Select(at => (byte)(at % 4096 * 7 + at / 4096)), bytes);
        space.RequireRange(Start, 4 * 4096, TestContext.Current.CancellationToken);
        var error = Assert.Throws<GuestMemoryException>(() => space.ReadExact(Start + 1, new byte[4 * 4096], TestContext.Current.CancellationToken));
        Assert.Equal((GuestMemoryError.PageNotPresent, Start + 4 * 4096), (error.Error, error.Address));
        error = Assert.Throws<GuestMemoryException>(() => space.ReadExact(ulong.MaxValue, new byte[2], TestContext.Current.CancellationToken));
        Assert.Equal(GuestMemoryError.GuestAddressOverflow, error.Error);
        space.ReadExact(ulong.MaxValue, Memory<byte>.Empty, TestContext.Current.CancellationToken);
        // A page that is mapped to where no memory is.
        _tables.Map(PageTables.Root, Table, 0xfee0_0000 | Leaf, 0, 0, 1, 1);
        error = Assert.Throws<GuestMemoryException>(() => space.ReadExact(Start + 4 * 4096 - 4, new byte[8], TestContext.Current.CancellationToken));
        Assert.Equal((GuestMemoryError.InvalidGuestAddress, 0xfee0_0000UL), (error.Error, error.Address));
    }

    [Fact]
    public void WhatIsWrittenToAFileIsWhatIsRead()
    {
        using var folder = new TestFolder();
        var pages = new[] { _tables.Page(), _tables.Page() };
        _tables.Map(PageTables.Root, Table, pages[1] | Leaf, 0, 0, 0, 4);
        _tables.Map(PageTables.Root, Table, pages[0] | Leaf, 0, 0, 0, 5);
        _tables.Memory.WriteExact(new GuestAddress(pages[0]), Enumerable.Repeat((byte)1, 4096).ToArray());
        _tables.Memory.WriteExact(new GuestAddress(pages[1] + 4000), "end"u8);
        var path = folder["part"];
        var space = Space(PageTableFormat.X64());
        space.WriteRange(0x4100, 0x1e00, path, overwrite: false, cancellation: TestContext.Current.CancellationToken);
        var expected = new byte[0x1e00];
        space.ReadExact(0x4100, expected, TestContext.Current.CancellationToken);
        Assert.Equal(expected, File.ReadAllBytes(path));
        Assert.Equal(GuestMemoryError.PageNotPresent, Assert.Throws<GuestMemoryException>(() => { space.WriteRange(0x4100, 0x2000, path, overwrite: true, cancellation: TestContext.Current.CancellationToken); }).Error);
        Assert.Equal(expected, File.ReadAllBytes(path));
    }

    [Fact]
    public void Arm64MapsPagesAndBlocksOf4KiB()
    {
        const ulong Block = 0x0060_0000_0000_0701, Page = 0x0060_0000_0000_0703, Next = 3;
        var page = _tables.Page();
        _tables.Map(PageTables.Root, Next, page | Page, 0x178, 0x1f, 0x11, 0x22);
        _tables.Map(PageTables.Root, Next, 0x4060_0000 | Block, 0x178, 0x1f, 0x12);
        _tables.Map(PageTables.Root, Next, 0x8000_0000 | Block, 0x178, 0x20);
        // The other half of the addresses: TTBR0's table is another.
        var user = _tables.Page();
        _tables.Map(user, Next, page | Page, 0, 0, 2, 1);
        var kernel = Space(PageTableFormat.Arm64());
        var start = 0xffff_0000_0000_0000 | 0x178UL << 39 | 0x1fUL << 30;
        Check(kernel, start | 0x11UL << 21 | 0x22UL << 12 | 0x789, page + 0x789, 0x1000);
        Check(kernel, start | 0x12UL << 21 | 0x54321, 0x4065_4321, 0x20_0000);
        Check(kernel, (start | 0x3fff_ffff) + 0x1234_5679, 0x9234_5678, 0x4000_0000);
        // With an ASID, and CnP.
        Check(new GuestVirtualMemory(_tables.Memory, user | 0x0042_0000_0000_0001, PageTableFormat.Arm64()), 0x401abc, page + 0xabc, 0x1000);
        Fails(kernel, 0x0001_0000_0000_0000, GuestMemoryError.AddressNotCanonical, "48 bits");
        Fails(kernel, 0xfffe_0000_0000_0000, GuestMemoryError.AddressNotCanonical, "48 bits");
        Fails(kernel, start, GuestMemoryError.PageNotPresent, "entry 0 of the table of level 2");
        // A block where none may be, and a page that is none.
        _tables.Set(PageTables.Root, 0, 0x4000_0000 | Block);
        Fails(kernel, 0, GuestMemoryError.PageTableInvalid, "entry 0 of the table of level 0");
        _tables.Map(PageTables.Root, Next, page | Block, 1, 0, 0, 0);
        Fails(kernel, 1UL << 39, GuestMemoryError.PageTableInvalid, "entry 0 of the table of level 3");
    }

    [Theory]
    [InlineData(39, 4096, 3)]
    [InlineData(48, 4096, 4)]
    [InlineData(52, 4096, 5)]
    [InlineData(47, 16384, 3)]
    [InlineData(48, 16384, 4)]
    [InlineData(42, 65536, 2)]
    [InlineData(48, 65536, 3)]
    [InlineData(52, 65536, 3)]
    public void Arm64HasALevelForEveryPartOfTheAddress(int bits, int pageSize, int levels)
    {
        var format = PageTableFormat.Arm64(bits, pageSize);
        Assert.Equal(levels, format.Levels);
        // A table that refers to itself at its last entry, as the format has it: aligned to its own size at least.
        var shift = int.Log2(pageSize);
        var top = 1 << bits - shift - ((levels - 1) * (shift - 3));
        Assert.True(format.IsCanonical(ulong.MaxValue) && format.IsCanonical((1UL << bits) - 1) && !format.IsCanonical(1UL << bits));
        var table = (PageTables.Root + (ulong)pageSize - 1) & ~((ulong)pageSize - 1);
        for (var index = 0; index < pageSize / 8; index++) _tables.Set(table, (ulong)index, index == pageSize / 8 - 1 || index == top - 1 ? table | 3 : 0);
        Check(Space(format, table), ulong.MaxValue, table + (ulong)pageSize - 1, (ulong)pageSize);
        Fails(Space(format, table), unchecked(0 - (1UL << bits)), GuestMemoryError.PageNotPresent, "entry 0 of the table of level");
    }

    [Fact]
    public void Arm64KeepsUpperAddressBitsElsewhere()
    {
        // A block of 1 GiB at 2^50 + 2^48 of FEAT_LPA2, and a page at 2^51 of 64 KiB (FEAT_LPA).
        _tables.Map(PageTables.Root, 3, 0x0001_0000_8000_0000 | 0x100 | 0x401, 15, 1, 2);
        Check(Space(PageTableFormat.Arm64(52)), 0xffff_0000_0000_0000 | 1UL << 39 | 2UL << 30 | 5, 0x0005_0000_8000_0005, 0x4000_0000);
        _tables.Set(PageTables.Root, 7, (PageTables.Root + 0x1_0000) | 3);
        _tables.Set(PageTables.Root + 0x1_0000, 1, (PageTables.Root + 0x2_0000) | 3);
        _tables.Set(PageTables.Root + 0x2_0000, 2, 0x0000_0000_0009_0000 | 0x8000 | 0x403);
        Check(Space(PageTableFormat.Arm64(52, 65536)), 7UL << 42 | 1UL << 29 | 2UL << 16 | 0x1234, 0x0008_0000_0009_1234, 0x1_0000);
    }

    private static void Check(GuestVirtualMemory space, ulong address, ulong physical, ulong pageSize) =>
        Assert.Equal(new PageTranslation(address, physical, pageSize), space.Translate(address, TestContext.Current.CancellationToken));

    private static void Fails(GuestVirtualMemory space, ulong address, GuestMemoryError error, string what)
    {
        var exception = Assert.Throws<GuestMemoryException>(() => space.Translate(address, TestContext.Current.CancellationToken));
        Assert.Equal((error, address), (exception.Error, exception.Address));
        Assert.Contains(what, exception.Message, StringComparison.Ordinal);
    }

    private GuestVirtualMemory Space(PageTableFormat format, ulong root = PageTables.Root) => new(_tables.Memory, root, format);
}
