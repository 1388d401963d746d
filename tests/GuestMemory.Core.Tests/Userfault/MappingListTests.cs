using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>The mapping list: firecracker-uffd.md sections 1 and 11.1, 11.2, and what bad input gets.</summary>
public sealed class MappingListTests
{
    [Fact]
    public void V11_1_OffsetsAddUp()
    {
        var memory = GuestMemoryMmap.FromRegions(new[] { (0UL, 0x20000UL), (0x100000UL, 0x1000UL), (0x200000UL, 0x3000UL) }
            .Select(region => new GuestRegionMmap(new MmapRegionBuilder(region.Item2).Build(), new GuestAddress(region.Item1))));
        var mappings = UffdMappingList.FromMemory(memory);
        Assert.Equal([0UL, 0x20000, 0x21000], mappings.Select(mapping => mapping.Offset));
        Assert.Equal([0x20000UL, 0x1000, 0x3000], mappings.Select(mapping => mapping.Size));
        Assert.All(mappings, mapping => Assert.Equal((4096UL, 4096UL), (mapping.PageSize, mapping.PageSizeKib)));
        foreach (var region in memory.Regions) region.Dispose();
    }

    /// <summary>Both offsets 0: must not be rejected. The JSON is upstream's to the byte.</summary>
    [Fact]
    public void V11_2_RoundTrip()
    {
        GuestRegionUffdMapping[] list = [new(0, 0x100000, 0, 4096), new(0x100000, 0x200000, 0, 2097152)];
        var json = UffdMappingList.ToJson(list);
        Assert.Equal("""[{"base_host_virt_addr":0,"size":1048576,"offset":0,"page_size":4096,"page_size_kib":4096},{"base_host_virt_addr":1048576,"size":2097152,"offset":0,"page_size":2097152,"page_size_kib":2097152}]""", Encoding.UTF8.GetString(json));
        Assert.Equal(list, UffdMappingList.FromJson(json));
    }

    [Fact]
    public void LargeNumbersStayWhole()
    {
        GuestRegionUffdMapping[] list = [new(ulong.MaxValue - 4095, 4096, 1UL << 63, 4096)];
        Assert.Equal(list, UffdMappingList.FromJson(UffdMappingList.ToJson(list)));
    }

    [Theory]
    [InlineData("""[{"base_host_virt_addr":4096,"size":4096,"offset":0}]""", 4096)]
    [InlineData("""[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size_kib":2097152}]""", 2097152)]
    [InlineData("""[{"offset":0,"page_size":8192,"page_size_kib":4096,"future":{"a":[1]},"size":4096,"base_host_virt_addr":4096}]""", 8192)]
    public void OldAndFutureSendersAreUnderstood(string json, ulong pageSize) =>
        Assert.Equal([new GuestRegionUffdMapping(4096, 4096, 0, pageSize)], UffdMappingList.FromJson(Encoding.UTF8.GetBytes(json)));

    [Theory]
    [InlineData("")]
    [InlineData("null")]
    [InlineData("{}")]
    [InlineData("[null]")]
    [InlineData("[{}]")]
    [InlineData("""[{"base_host_virt_addr":0,"size":4096}]""")]
    [InlineData("""[{"base_host_virt_addr":-1,"size":4096,"offset":0}]""")]
    [InlineData("""[{"base_host_virt_addr":18446744073709551616,"size":4096,"offset":0}]""")]
    [InlineData("""[{"base_host_virt_addr":0.5,"size":4096,"offset":0}]""")]
    [InlineData("""[{"base_host_virt_addr":"0","size":4096,"offset":0}]""")]
    [InlineData("""[{"base_host_virt_addr":0,"size":4096,"offset":0,"x":[[[[[[[[1]]]]]]]]}]""")]
    [InlineData("""[{"base_host_virt_addr":0,"size":4096,"offset":0}""")]
    public void BadJsonIsRefused(string json) =>
        Assert.Equal(GuestMemoryError.HandoverBadJson, Assert.Throws<GuestMemoryException>(() => UffdMappingList.FromJson(Encoding.UTF8.GetBytes(json))).Error);

    [Fact]
    public void HugeJsonIsRefusedUnread() =>
        Assert.Equal(GuestMemoryError.HandoverTooLarge, Assert.Throws<GuestMemoryException>(() => UffdMappingList.FromJson(new byte[10_000_000])).Error);

    public static TheoryData<string, GuestRegionUffdMapping[]> Contradictions => new()
    {
        { "empty", [] },
        { "no bytes", [new(0, 0, 0, 4096)] },
        { "power of two", [new(0, 1UL << 31, 0, 1UL << 31)] },
        { "power of two", [new(0, 0x1000, 0, 0)] },
        { "power of two", [new(0, 0x3000, 0, 0x3000)] },
        { "power of two", [new(0, 0x1000, 0, 512)] },
        { "not aligned", [new(0x10, 0x1000, 0, 4096)] },
        { "not aligned", [new(0, 0x1001, 0, 4096)] },
        { "not aligned", [new(0, 0x1000, 0x10, 4096)] },
        { "not aligned", [new(0x1000, 0x200000, 0, 2097152)] },
        { "2^64", [new(ulong.MaxValue - 4095, 0x2000, 0, 4096)] },
        { "image that is", [new(0, 0x11000, 0, 4096)] },
        { "image that is", [new(0, 0x1000, 0x10000, 4096)] },
        { "image that is", [new(0, 0x1000, ulong.MaxValue - 4095, 4096)] },
        { "overlap", [new(0x2000, 0x2000, 0, 4096), new(0x1000, 0x2000, 0x2000, 4096)] },
    };

    [Theory]
    [MemberData(nameof(Contradictions))]
    public void ContradictionsAreNamed(string expected, GuestRegionUffdMapping[] list)
    {
        var error = Assert.Throws<GuestMemoryException>(() => UffdMappingList.Validate(list, 0x10000));
        Assert.Equal(GuestMemoryError.InvalidMapping, error.Error);
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void MoreThanAnyGuestHasIsRefused()
    {
        var one = new GuestRegionUffdMapping(0, 1UL << 46, 0, 4096);
        UffdMappingList.Validate([one], ulong.MaxValue);
        var error = Assert.Throws<GuestMemoryException>(() => UffdMappingList.Validate([one, new(1UL << 46, 4096, 0, 4096)], ulong.MaxValue));
        Assert.Contains("in all", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ContainsIsHalfOpen()
    {
        var mapping = new GuestRegionUffdMapping(0x100000, 0x8000, 0x500000, 0x2000);
        Assert.Equal((false, true, true, false), (mapping.Contains(0xfffff), mapping.Contains(0x100000), mapping.Contains(0x107fff), mapping.Contains(0x108000)));
    }
}
