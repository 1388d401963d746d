using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Searches, each held against one that looks at every byte.</summary>
public sealed class MemorySearchTests : IDisposable
{
    // Over blocks, a piece and a hole; with regions that touch in the middle of a block.
    private static readonly (string Backing, ulong Address, ulong Size)[] s_layout =
    [
        ("anonymous", 0x1000, 0x2000), ("file", 0x3000, 0x41_0000), ("memfd", 0x41_3000, 0x3000), ("window", 0x50_0000, 0x1000), ("pread", 0x50_1000, 0x5000),
    ];

    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [InlineData("01")]
    [InlineData("01 02")]
    [InlineData("?1 0? 03")]
    [InlineData("03 ?? ?? 01")]
    [InlineData("00 00 01 ?? 03 02 01")]
    [InlineData("0?")]
    public void FindsWhatIsThereAndNothingElse(string text)
    {
        var memory = Random(4, 17);
        var pattern = MemoryPattern.Parse(text);
        var all = Naive(memory, pattern);
        // Whatever the alignment, and where the search begins and ends.
        foreach (var alignment in (ulong[])[1, 2, 6, 64, 4096])
        {
            var search = new MemorySearch(pattern) { Alignment = alignment };
            Assert.Equal(all.Where(at => at % alignment == 0), search.Find(memory).Select(match => match.Address));
            Assert.Equal(all.Where(at => at % alignment == 0 && at >= 0x2fe5 && at + (ulong)pattern.Reach - 1 <= 0x41_4009), search.Find(memory, new GuestAddress(0x2fe5), 0x41_4009 - 0x2fe5 + 1).Select(match => match.Address));
        }
    }

    [Fact]
    public void FindsAcrossEveryBorder()
    {
        var memory = _memory.Space(s_layout);
        byte[] needle = [0xde, 0xad, 0xbe, 0xef, 0xfe, 0xed];
        // Between regions, blocks and pieces, at the ends, and one that the hole cuts off.
        ulong[] places = [0x1000, 0x2ffd, 0x3_fffb, 0x7_ffff, 0x3f_fffd, 0x40_fffe, 0x41_2ffb, 0x41_5ffa, 0x50_0fff, 0x50_5ffa];
        foreach (var place in places) memory.WriteExact(new GuestAddress(place), needle);
        memory.WriteExact(new GuestAddress(0x50_0000), needle.AsSpan(3));
        var matches = new MemorySearch(MemoryPattern.FromBytes(needle)) { Context = 3 }.Find(memory).ToArray();
        Assert.Equal(places, matches.Select(match => match.Address));
        Assert.All(matches, match => Assert.Equal(needle, match.Bytes));
        Assert.Equal(["anonymous", "anonymous", "file", "file", "file", "file", "file", "memfd", "window", "pread"], matches.Select(match => match.Region), StringComparer.Ordinal);
        // Context ends where the memory does.
        Assert.Equal((0x1000UL, 9UL), (matches[0].Context.Address, matches[0].Context.Size));
        Assert.Equal((0x2ffaUL, 12UL), (matches[1].Context.Address, matches[1].Context.Size));
        Assert.Equal((0x41_5ff7UL, 9UL), (matches[7].Context.Address, matches[7].Context.Size));
    }

    [Fact]
    public void ManyMatchesComeOneByOneInTheirOrder()
    {
        var memory = _memory.Space("anonymous", (0, 0x4_1001));
        // Far more than a piece gives at once, of two patterns, and each only once.
        memory.WriteObject(new GuestAddress(0x2_0000), (byte)1);
        var search = new MemorySearch(MemoryPattern.Parse("00"), MemoryPattern.Parse("0?")) { Context = 0 };
        ulong at = 0;
        var seen = 0;
        foreach (var match in search.Find(memory))
        {
            Assert.Equal(at, match.Address);
            seen++;
            if (seen == 2 || at == 0x2_0000) (at, seen) = (at + 1, 0);
        }

        Assert.Equal((0x4_1001UL, 0), (at, seen));
    }

    [Fact]
    public void ManyMatchesWithALongContextComeAllTheSame()
    {
        var memory = _memory.Space("anonymous", (0x1000, 0x1000));
        var matches = new MemorySearch(MemoryPattern.Parse("00 00")) { Context = 65536 }.Find(memory).ToArray();
        Assert.Equal(Enumerable.Range(0x1000, 0xfff).Select(at => (ulong)at), matches.Select(match => match.Address));
        Assert.All(matches, match => Assert.Equal((0x1000UL, 0x1000UL), (match.Context.Address, match.Context.Size)));
    }

    [Fact]
    public void FindsTextInEveryEncodingAndCase()
    {
        var memory = _memory.Space("file", (0, 0x5_0000));
        memory.WriteExact(new GuestAddress(0x100), Encoding.UTF8.GetBytes("Zürich"));
        memory.WriteExact(new GuestAddress(0x3_fff9), Encoding.Unicode.GetBytes("zÜRICH"));
        Assert.Equal([0x100UL], Find(MemoryPattern.FromText("Zürich")));
        Assert.Equal([0x3_fff9UL], Find(MemoryPattern.FromText("zÜRICH", Encoding.Unicode)));
        Assert.Empty(Find(MemoryPattern.FromText("zürich")));
        Assert.Equal([0x100UL], Find(MemoryPattern.FromText("züRICH", ignoreCase: true)));
        Assert.Equal([0x3_fff9UL], Find(MemoryPattern.FromText("ZÜrich", Encoding.Unicode, ignoreCase: true)));
        Assert.Equal([0x103UL, 0x3_fffd], Find(MemoryPattern.FromText("rich", null, true), MemoryPattern.FromText("rich", Encoding.Unicode, true)));

        ulong[] Find(params MemoryPattern[] patterns) => [.. new MemorySearch(patterns).Find(memory).Select(match => match.Address)];
    }

    [Fact]
    public void RegularExpressionsSeeBytes()
    {
        var memory = _memory.Space("anonymous", (0, 0x8_0000));
        memory.WriteExact(new GuestAddress(0x3_fff0), "BOOT_IMAGE=/vmlinuz-6.1 root=/dev/vda1\0"u8);
        memory.WriteExact(new GuestAddress(0x1000), [0x7f, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1]);
        memory.WriteExact(new GuestAddress(0x7_ff00), [0xff, 0x80, 0xff]);
        Assert.Equal("BOOT_IMAGE=/vmlinuz-6.1 root=/dev/vda1", Encoding.ASCII.GetString(Assert.Single(Find(@"BOOT_IMAGE=[\x20-\x7e]+")).Bytes));
        Assert.Equal(0x1000UL, Assert.Single(Find(@"\x7fELF[\x01\x02]")).Address);
        Assert.Equal([0xff, 0x80, 0xff], Assert.Single(Find(@"\xff[\x80-\xff]+")).Bytes);
        Assert.Equal(0x3_fff0UL + 24, Assert.Single(Find(@"\bROOT\b", ignoreCase: true)).Address);
        Assert.Equal([0x1000UL, 0x4_0000], new MemorySearch(MemoryPattern.FromRegex(@"[\x01-\xff]{4}")) { Alignment = 4096 }.Find(memory).Select(match => match.Address));
        // No match begins in one that was given, none has no bytes, and none is longer than is said.
        Assert.Equal([0x3_fff0UL, 0x3_fffb], Find("[A-Z_]{5,}|/[a-z]+-").Select(match => match.Address));
        Assert.Empty(Find("x*?"));
        Assert.Equal(4096UL, Find(@"\x00+").First().Size);

        IEnumerable<MemoryMatch> Find(string expression, bool ignoreCase = false) => new MemorySearch(MemoryPattern.FromRegex(expression, ignoreCase)).Find(memory);
    }

    [Theory]
    [InlineData("")]
    [InlineData("  ")]
    [InlineData("4")]
    [InlineData("48 8")]
    [InlineData("48 xy")]
    [InlineData("?? ??")]
    public void ATextThatIsNoPatternIsRefused(string text) => Assert.Equal(GuestMemoryError.InvalidPattern, Failure.Of(() => MemoryPattern.Parse(text)));

    [Fact]
    public void WhatCannotBeSearchedForIsRefused()
    {
        foreach (var make in (Action[])
        [
            () => MemoryPattern.FromBytes([]),
            () => MemoryPattern.FromBytes(new byte[4097]),
            () => MemoryPattern.FromText(""),
            () => MemoryPattern.FromText("ü", Encoding.ASCII),
            () => MemoryPattern.FromRegex("(a"),
            () => MemoryPattern.FromRegex("(?<=a)b"),
            () => MemoryPattern.FromRegex(@"(a)\1"),
        ]) Assert.Equal(GuestMemoryError.InvalidPattern, Failure.Of(make));
        var memory = _memory.Space("anonymous", (0x1000, 0x1000));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => new MemorySearch(MemoryPattern.Parse("01")).Find(memory, default, 0x1000)));
    }

    [Fact]
    public void APageThatCannotBeReadIsAnErrorAfterWhatWasFound()
    {
        var path = _memory.NewFile(0x80_0000);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x80_0000).WithFile(path).Build(), default, "file");
        region.WriteExact(new MemoryRegionAddress(0x10), [7]);
        using (var file = File.OpenWrite(path)) file.SetLength(0x60_0000);
        var found = new List<ulong>();
        var error = Assert.Throws<GuestMemoryException>(() =>
        {
            foreach (var match in new MemorySearch(MemoryPattern.Parse("07")).Find(GuestMemoryMmap.FromRegions([region]))) found.Add(match.Address);
        });
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        Assert.Equal([0x10UL], found);
    }

    [Fact]
    public void ProgressAndTheTokenAreTheCallers()
    {
        var memory = _memory.Space("anonymous", (0, 0x300_0000), (0x1000_0000, 0x1001));
        using var cancel = new CancellationTokenSource();
        var told = new List<ulong>();
        Assert.Empty(new MemorySearch(MemoryPattern.Parse("01")).Find(memory, told.Add));
        Assert.Equal(0x300_1001UL, told[^1]);
        Assert.Equal(told.Order(), told);
        Assert.Throws<OperationCanceledException>(() => new MemorySearch(MemoryPattern.Parse("01")).Find(memory, _ => cancel.Cancel(), cancel.Token).Count());
        // Whoever wants no more gets no more, and the memory is left alone.
        Assert.Equal(0UL, new MemorySearch(MemoryPattern.Parse("00")).Find(memory).First().Address);
    }

    [Fact]
    public void AMatchIsWhatWasReadWhileOthersWrite()
    {
        var memory = _memory.Space("anonymous", (0, 0x4_0000));
        var stop = false;
        var writer = new Thread(() =>
        {
            for (var round = 0; !Volatile.Read(ref stop); round++) memory.WriteExact(new GuestAddress((ulong)(round % 0x3000) * 16), round % 2 == 0 ? [1, 2, 3, 4] : [1, 2, 3, 5]);
        });
        writer.Start();
        try
        {
            for (var round = 0; round < 50; round++)
                Assert.All(new MemorySearch(MemoryPattern.Parse("01 02 03 04")) { Context = 0 }.Find(memory), match => Assert.Equal([1, 2, 3, 4], match.Bytes));
        }
        finally
        {
            Volatile.Write(ref stop, true);
            writer.Join();
        }
    }

    private GuestMemoryMmap Random(int values, int seed)
    {
        var memory = _memory.Space(s_layout);
        var random = new Random(seed);
        foreach (var region in memory.Regions)
        {
            var bytes = new byte[region.Size];
            random.NextBytes(bytes);
            // Mostly zeros in places.
            for (var i = 0; i < bytes.Length; i++) bytes[i] = (byte)((i >> 12) % 3 == 0 && bytes[i] % 32 != 0 ? 0 : bytes[i] % values);
            region.WriteExact(default, bytes);
        }

        return memory;
    }

    private static List<ulong> Naive(GuestMemoryMmap memory, MemoryPattern pattern)
    {
        var found = new List<ulong>();
        foreach (var (start, end) in MemoryScan.Runs(memory))
        {
            var bytes = new byte[end - start + 1];
            memory.ReadExact(new GuestAddress(start), bytes);
            for (var at = 0; at <= bytes.Length - pattern.Reach; at++)
            {
                if (pattern.IsMatch(bytes.AsSpan(at, pattern.Reach))) found.Add(start + (ulong)at);
            }
        }

        return found;
    }
}
