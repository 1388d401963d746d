using System.Buffers.Binary;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>The tables of a kernel's symbols, in both orders that kernels have had, where nothing says where they are.</summary>
public sealed class KallsymsTests : IDisposable
{
    private const ulong Base = 0xffff_ffff_8100_0000;
    private const ulong Start = 0x10_0000;

    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(new GuestAddress(Start), 0x40_0000)]);

    public void Dispose() => _memory.Regions[0].Dispose();

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    public void AreFoundByWhatTheyLookLike(bool offsetsLast, bool percpu)
    {
        var symbols = Symbols(percpu);
        var places = Write(symbols, offsetsLast, percpu);
        var digits = Assert.Single(new MemorySearch(KallsymsFinder.Digits).Find(_memory, cancellation: TestContext.Current.CancellationToken));
        var found = KallsymsFinder.Find(_memory, [digits], TestContext.Current.CancellationToken).ToArray();
        Assert.Contains(places, found);
        var read = Kallsyms.Read(_memory, places, TestContext.Current.CancellationToken);
        Assert.Equal(symbols, read.All());
        Assert.Equal(symbols.Length, read.Count);
        Assert.Equal(new Dictionary<string, ulong>(StringComparer.Ordinal) { ["a_symbol_17"] = Base + (16 * 17), ["the_last"] = symbols[^1].Address },
            read.Find("a_symbol_17", "the_last", "none"));
    }

    [Fact]
    public void AddressesWithoutABaseAreRelativeToTheirPlace()
    {
        var symbols = Symbols(percpu: false);
        var places = Write(symbols, offsetsLast: true, percpu: false);
        const ulong Delta = Base - Start;
        for (var i = 0; i < symbols.Length; i++)
        {
            var place = places.Offsets + (4 * (ulong)i);
            _memory.WriteObject(new GuestAddress(place), (int)(symbols[i].Address - (place + Delta)));
        }

        Assert.Equal(symbols, Kallsyms.Read(_memory, places with { RelativeBase = null, Delta = Delta }, TestContext.Current.CancellationToken).All());
    }

    [Theory]
    [InlineData("no symbols", 0u)]
    [InlineData("more than there can be", 0x40_0001u)]
    [InlineData("more than there are names", 0x3f_ffffu)]
    [InlineData("more than there are names, by some", 30_000u)]
    public void ACountThatLiesIsAnError(string what, uint count)
    {
        var places = Write(Symbols(percpu: false), offsetsLast: true, percpu: false);
        _memory.WriteObject(new GuestAddress(places.Count), count);
        var error = Assert.Throws<GuestMemoryException>(() => Kallsyms.Read(_memory, places, TestContext.Current.CancellationToken));
        Assert.True(error.Error == GuestMemoryError.InvalidKernelData, what);
    }

    [Fact]
    public void TablesThatLieAreErrorsOrOtherNames()
    {
        var symbols = Symbols(percpu: false);
        var places = Write(symbols, offsetsLast: true, percpu: false);
        // Tokens behind the end of their table, a table without an end, names in the wrong place, outside the memory.
        KallsymsPlaces[] wrong =
        [
            places with { TokenTable = places.TokenTable - 0x10_0000 }, places with { TokenIndex = places.TokenTable }, places with { TokenIndex = places.TokenIndex + 1 },
            places with { Names = places.TokenTable }, places with { Names = Start - 8 }, places with { Names = 0, TokenTable = ulong.MaxValue - 4096, TokenIndex = ulong.MaxValue },
            places with { Offsets = Start + 0x40_0000 - 8 }, places with { RelativeBase = 0 }, places with { Count = ulong.MaxValue },
        ];
        foreach (var each in wrong)
            Assert.Equal(GuestMemoryError.InvalidKernelData, Assert.Throws<GuestMemoryException>(() => Kallsyms.Read(_memory, each, TestContext.Current.CancellationToken)).Error);
        // A name whose tokens expand to more than a name may have is left out.
        _memory.WriteExact(new GuestAddress(places.Names), [0xff, 0x01]);
        var read = Record.Exception(() => Kallsyms.Read(_memory, places, TestContext.Current.CancellationToken).All().Count());
        Assert.True(read is null or GuestMemoryException { Error: GuestMemoryError.InvalidKernelData }, $"{read}");
    }

    [Fact]
    public void TheSearchForNamesCanBeStopped()
    {
        var places = Write(Symbols(percpu: false), offsetsLast: true, percpu: false);
        var first = places.Names - 4096;
        var block = new byte[places.TokenTable - first];
        _memory.ReadExact(new GuestAddress(first), block.AsSpan());
        Assert.Equal(4096, KallsymsFinder.FindNames(block, CancellationToken.None));
        Assert.Throws<OperationCanceledException>(() => KallsymsFinder.FindNames(block, new CancellationToken(canceled: true)));
    }

    [Fact]
    public void MarkersThatLeaveTheBlockAreNone()
    {
        // They rise as far as markers may, past 2 GiB.
        var block = new byte[1 << 20];
        for (var i = 0; i < 30_000; i++) BinaryPrimitives.WriteUInt32LittleEndian(block.AsSpan(4096 + (4 * i)), (uint)i * 131072);
        Assert.Null(KallsymsFinder.FindNames(block, CancellationToken.None));
    }

    [Fact]
    public void WhatControlsATerminalIsNotShown() => Assert.Equal("a?]52;c;b?", KernelData.Printable("a\u001b]52;c;b\u0007"));

    private static GuestSymbol[] Symbols(bool percpu)
    {
        var symbols = Enumerable.Range(0, 20_000).Select(i => new GuestSymbol($"a_symbol_{i}", Base + (16 * (ulong)i), i % 2 == 0 ? 'T' : 'd')).ToList();
        if (percpu) symbols.InsertRange(0, [new GuestSymbol("fixed_percpu_data", 0, 'A'), new GuestSymbol("cpu_number", 0x1234, 'A')]);
        // A length of two bytes.
        symbols.Add(new GuestSymbol("the_" + new string('x', 300), Base + 0x10_0000, 't'));
        symbols.Add(new GuestSymbol("the_last", Base + 0x10_0010, 'B'));
        return [.. symbols];
    }

    /// <summary>Writes the tables as scripts/kallsyms.c does, with a token "symbol_" and otherwise characters.</summary>
    private KallsymsPlaces Write(GuestSymbol[] symbols, bool offsetsLast, bool percpu)
    {
        const byte Token = 1;
        var names = new MemoryStream();
        var markers = new List<uint>();
        for (var i = 0; i < symbols.Length; i++)
        {
            if (i % 256 == 0) markers.Add((uint)names.Length);
            var text = Encoding.Latin1.GetBytes((symbols[i].Type + symbols[i].Name).Replace("symbol_", "\x01", StringComparison.Ordinal));
            names.Write(text.Length < 0x80 ? [(byte)text.Length] : [(byte)(text.Length & 0x7f | 0x80), (byte)(text.Length >> 7)]);
            names.Write(text);
        }

        var table = new MemoryStream();
        var index = new MemoryStream();
        for (var i = 0; i < 256; i++)
        {
            index.Write([(byte)table.Length, (byte)(table.Length >> 8)]);
            table.Write(i == Token ? "symbol_"u8 : i is >= 'A' and <= 'z' or >= '0' and <= '9' ? [(byte)i] : []);
            table.WriteByte(0);
        }

        // An empty token is not told from the next one; kernels have none, and only those of what occurs in names.
        var offsets = symbols.SelectMany(symbol => BitConverter.GetBytes(!percpu ? (int)(symbol.Address - Base) : symbol.Type == 'A' ? (int)symbol.Address : (int)(Base - 1 - symbol.Address))).ToArray();
        var at = Start + 0x1_2340;
        ulong offsetsAt = 0, baseAt = 0;
        if (!offsetsLast) Offsets();
        var count = Put(BitConverter.GetBytes(symbols.Length));
        var namesAt = Put(names.ToArray());
        Put([.. markers.SelectMany(BitConverter.GetBytes)]);
        var tokens = Put(table.ToArray());
        var indexAt = Put(index.ToArray());
        if (offsetsLast) Offsets();
        return new KallsymsPlaces(count, namesAt, tokens, indexAt, offsetsAt, baseAt, 0);

        void Offsets()
        {
            offsetsAt = Put(offsets);
            baseAt = Put(BitConverter.GetBytes(Base));
        }

        ulong Put(byte[] bytes)
        {
            var place = at;
            _memory.WriteExact(new GuestAddress(place), bytes);
            at = place + (ulong)bytes.Length + 7 & ~7UL;
            return place;
        }
    }
}
