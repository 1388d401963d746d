namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 11.5.</summary>
public sealed class AddressIntervalTests
{
    private const ulong Max = ulong.MaxValue;
    private static readonly AddressInterval s_empty = AddressInterval.Empty;

    [Theory]
    [InlineData(1, 0)]
    [InlineData(Max, 0)]
    [InlineData(Max, Max - 1)]
    public void V11_5_Empties(ulong start, ulong end)
    {
        var range = new AddressInterval(start, end);
        Assert.True(range.IsEmpty);
        Assert.Equal(s_empty, range);
        Assert.Equal(s_empty.GetHashCode(), range.GetHashCode());
        Assert.Equal(0UL, range.Length);
        Assert.Equal("empty", range.ToString());
    }

    [Theory]
    [InlineData(0, 5, 3, true)]
    [InlineData(0, 0, 0, true)]
    [InlineData(0, Max, Max, true)]
    [InlineData(5, 0, 3, false)]
    public void V11_5_Contains(ulong start, ulong end, ulong address, bool expected) => Assert.Equal(expected, new AddressInterval(start, end).Contains(address));

    [Theory]
    [InlineData(0, 5, 0, 5, true)]
    [InlineData(0, 5, 1, 3, true)]
    [InlineData(0, 5, 3, 9, false)]
    [InlineData(0, 5, 6, 9, false)]
    [InlineData(0, 5, 1, 0, false)]
    [InlineData(1, 0, 0, 5, false)]
    [InlineData(1, 0, 1, 0, false)]
    public void V11_5_ContainsRange(ulong start, ulong end, ulong otherStart, ulong otherEnd, bool expected) =>
        Assert.Equal(expected, new AddressInterval(start, end).Contains(new AddressInterval(otherStart, otherEnd)));

    [Theory]
    [InlineData(0, 5, 4, 9, 4, 5)]
    [InlineData(0, Max, 3, 5, 3, 5)]
    [InlineData(10, 20, 5, 15, 10, 15)]
    [InlineData(0, 5, 6, 9, 1, 0)]
    [InlineData(6, 9, 0, 5, 1, 0)]
    public void V11_5_Intersect(ulong start, ulong end, ulong otherStart, ulong otherEnd, ulong commonStart, ulong commonEnd)
    {
        var (left, right, common) = (new AddressInterval(start, end), new AddressInterval(otherStart, otherEnd), new AddressInterval(commonStart, commonEnd));
        Assert.Equal(common, left.Intersect(right));
        Assert.Equal(common, right.Intersect(left));
        Assert.Equal(!common.IsEmpty, left.Overlaps(right));
    }

    [Theory]
    [InlineData(0, 100, 10, 20, "0x0..=0x9 0x15..=0x64")]
    [InlineData(0, 100, 10, 100, "0x0..=0x9 empty")]
    [InlineData(0, 100, 0, 50, "empty 0x33..=0x64")]
    [InlineData(0, 100, 200, 300, "0x0..=0x64 empty")]
    [InlineData(200, 300, 0, 100, "empty 0xc8..=0x12c")]
    [InlineData(10, 20, 15, 35, "0xa..=0xe empty")]
    [InlineData(10, 20, 5, 15, "empty 0x10..=0x14")]
    [InlineData(10, 20, 1, 0, "0xa..=0x14 empty")]
    [InlineData(0, Max, 0, Max, "empty empty")]
    public void V11_5_NonOverlappingRanges(ulong start, ulong end, ulong otherStart, ulong otherEnd, string expected)
    {
        var (before, after) = new AddressInterval(start, end).NonOverlappingRanges(new AddressInterval(otherStart, otherEnd));
        Assert.Equal(expected, $"{before} {after}");
    }

    [Theory]
    [InlineData(15, "0xa..=0xe 0xf..=0x14")]
    [InlineData(20, "0xa..=0x13 0x14..=0x14")]
    [InlineData(10, "0xa..=0x14 empty")]
    [InlineData(21, "0xa..=0x14 empty")]
    [InlineData(9, "0xa..=0x14 empty")]
    public void V11_5_SplitAt(ulong address, string expected)
    {
        var (below, from) = new AddressInterval(10, 20).SplitAt(address);
        Assert.Equal(expected, $"{below} {from}");
    }

    [Theory]
    [InlineData(0x100, 0x20, "0x100..=0x11f")]
    [InlineData(0, Max, "0x0..=0xfffffffffffffffe")]
    [InlineData(1, Max, "0x1..=0xffffffffffffffff")]
    [InlineData(Max, 1, "0xffffffffffffffff..=0xffffffffffffffff")]
    [InlineData(Max, 0, "empty")]
    [InlineData(2, Max, null)]
    [InlineData(0x100, Max, null)]
    [InlineData(0x100, Max - 0xfe, null)]
    [InlineData(0x1234, 0x4445, "0x1234..=0x5678")]
    public void V11_5_FromStartAndSize(ulong start, ulong size, string? expected)
    {
        var range = AddressInterval.FromStartAndSize(start, size);
        Assert.Equal(expected, range?.ToString());
        if (range is { } some) Assert.Equal(size, some.Length);
    }

    [Fact]
    public void V11_5_LengthOfEverything() => Assert.Null(new AddressInterval(0, Max).Length);

    [Fact]
    public void V11_5_Ordering()
    {
        AddressInterval[] sorted = [s_empty, new(0, 0), new(0, 5), new(0, Max), new(1, 1), new(Max, Max)];
        for (var i = 0; i < sorted.Length; i++)
        {
            for (var j = 0; j < sorted.Length; j++)
            {
                Assert.Equal(i.CompareTo(j), sorted[i].CompareTo(sorted[j]));
                Assert.Equal(i == j, sorted[i] == sorted[j]);
                Assert.Equal(i < j, sorted[i] < sorted[j]);
                Assert.Equal(i >= j, sorted[i] >= sorted[j]);
            }
        }
    }
}
