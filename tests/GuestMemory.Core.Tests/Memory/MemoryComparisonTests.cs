namespace GuestMemory.Core.Tests;

/// <summary>Comparisons of two memories, each held against one of every byte.</summary>
public sealed class MemoryComparisonTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [InlineData("anonymous", "anonymous", 1)]
    [InlineData("anonymous", "file", 1)]
    [InlineData("file", "memfd", 16)]
    [InlineData("window", "file", 4096)]
    [InlineData("file", "pread", 65536)]
    public void FindsEveryByteThatDiffers(string first, string second, int granularity)
    {
        // Begins and ends within a unit, and is longer than a piece.
        const ulong start = 0x1230, size = 0x41_0123;
        var one = _memory.Space([(first, start, 0x1000), (first, start + 0x1000, size - 0x1000)]);
        var other = _memory.Space([(second, start, size)]);
        var random = new Random(granularity);
        var content = new byte[size];
        random.NextBytes(content);
        one.WriteExact(new GuestAddress(start), content);
        for (var i = 0; i < 200; i++)
        {
            // Single bytes and long runs, at both ends too.
            var at = i switch { 0 => 0, 1 => (int)size - 1, _ => random.Next((int)size) };
            var length = Math.Min(random.Next(4) == 0 ? random.Next(100_000) : 1 + random.Next(3), (int)size - at);
            random.NextBytes(content.AsSpan(at, length));
        }

        other.WriteExact(new GuestAddress(start), content);
        var mine = new byte[size];
        one.ReadExact(new GuestAddress(start), mine);
        var expected = Naive(mine, content, start, granularity);
        var comparison = new MemoryComparison(one, other) { Granularity = granularity };
        Assert.Equal(expected, comparison.GetDifferences());
        Assert.Equal(expected, new MemoryComparison(other, one) { Granularity = granularity }.GetDifferences());
        var summary = comparison.Summarize();
        Assert.Equal((size, expected.Count, false), (summary.ComparedSize, (int)summary.RangeCount, summary.AreEqual));
        Assert.Equal((ulong)mine.Zip(content).Count(pair => pair.First != pair.Second), summary.DifferentBytes);
        Assert.Equal(expected.Aggregate(0UL, (sum, range) => sum + range.Size), summary.DifferentSize);
    }

    [Fact]
    public void EqualMemoriesHaveNoDifference()
    {
        var one = _memory.Space("anonymous", (0, 0x90_0000));
        var other = _memory.Space("file", (0, 0x90_0000));
        var told = new List<ulong>();
        Assert.Empty(new MemoryComparison(one, other).GetDifferences(told.Add));
        Assert.Equal(0x90_0000UL, told[^1]);
        Assert.Equal(new MemoryComparisonSummary(0x90_0000, 0, 0, 0, 0, 0), new MemoryComparison(one, other).Summarize());
        Assert.True(new MemoryComparison(one, one).Summarize().AreEqual);
    }

    [Fact]
    public void AddressesOfOneMemoryAloneAreDifferences()
    {
        var one = _memory.Space("anonymous", (0, 0x2000), (0x2000, 0x1000), (0x8000, 0x1000), (0x10000, 0x1000));
        var other = _memory.Space("anonymous", (0x1000, 0x4000), (0x8000, 0x1000), (0x20000, 0x1000), (0xffff_ffff_ffff_e000, 0x1000));
        one.WriteObject(new GuestAddress(0x2fff), (byte)1);
        var comparison = new MemoryComparison(one, other) { Granularity = 1 };
        Assert.Equal(
        [
            new MemoryDifference(0, 0x1000, 0x1000, MemoryDifferenceKind.OnlyInFirst),
            new MemoryDifference(0x2fff, 1, 1, MemoryDifferenceKind.Content),
            new MemoryDifference(0x3000, 0x2000, 0x2000, MemoryDifferenceKind.OnlyInSecond),
            new MemoryDifference(0x10000, 0x1000, 0x1000, MemoryDifferenceKind.OnlyInFirst),
            new MemoryDifference(0x20000, 0x1000, 0x1000, MemoryDifferenceKind.OnlyInSecond),
            new MemoryDifference(0xffff_ffff_ffff_e000, 0x1000, 0x1000, MemoryDifferenceKind.OnlyInSecond),
        ], comparison.GetDifferences());
        Assert.Equal(new MemoryComparisonSummary(0x3000, 1, 1, 1, 0x2000, 0x4000), comparison.Summarize());
    }

    [Fact]
    public void EveryOtherByteIsARangeOfItsOwn()
    {
        var one = _memory.Space("anonymous", (0, 0x4_2000));
        var other = _memory.Space("anonymous", (0, 0x4_2000));
        var content = new byte[0x4_2000];
        for (var i = 0; i < content.Length; i += 2) content[i] = 1;
        one.WriteExact(default, content);
        ulong at = 0;
        foreach (var difference in new MemoryComparison(one, other) { Granularity = 1 }.GetDifferences())
        {
            Assert.Equal(new MemoryDifference(at, 1, 1, MemoryDifferenceKind.Content), difference);
            at += 2;
        }

        Assert.Equal(0x4_2000UL, at);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(131072)]
    public void AGranularityIsAPowerOfTwo(int granularity)
    {
        var memory = _memory.Space("anonymous", (0, 0x1000));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Failure.Of(() => new MemoryComparison(memory, memory) { Granularity = granularity }));
    }

    [Fact]
    public void TheTokenEndsIt()
    {
        var memory = _memory.Space("anonymous", (0, 0x400_0000));
        using var cancel = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new MemoryComparison(memory, memory).Summarize(_ => cancel.Cancel(), cancel.Token));
    }

    private static List<MemoryDifference> Naive(byte[] first, byte[] second, ulong start, int granularity)
    {
        var ranges = new List<MemoryDifference>();
        for (var at = 0; at < first.Length;)
        {
            var end = Math.Min(first.Length, at + granularity - (int)((start + (ulong)at) % (ulong)granularity));
            ulong different = 0;
            for (var i = at; i < end; i++) different += first[i] == second[i] ? 0ul : 1;
            if (different > 0)
            {
                if (ranges.Count > 0 && ranges[^1].LastAddress + 1 == start + (ulong)at)
                    ranges[^1] = ranges[^1] with { Size = ranges[^1].Size + (ulong)(end - at), DifferentBytes = ranges[^1].DifferentBytes + different };
                else ranges.Add(new MemoryDifference(start + (ulong)at, (ulong)(end - at), different, MemoryDifferenceKind.Content));
            }

            at = end;
        }

        return ranges;
    }
}
