using System.Numerics;

namespace GuestMemory.Core.Tests;

/// <summary>Flags and sources that the builder combines, or refuses to.</summary>
public sealed class MmapRegionBuilderTests : IDisposable
{
    private const ulong TwoMegabytes = 2 << 20;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    /// <summary>A touch of a page that the pool does not have is a signal: such memory is guarded, however it was asked for.</summary>
    [EmptyPoolFact]
    public void HugePagesOfTheFlagsAreGuarded()
    {
        var pageSize = Needs.EmptyPoolPageSize;
        var flags = MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve | MapFlags.HugeTlb | (MapFlags)((uint)BitOperations.Log2(pageSize) << Mman.MAP_HUGE_SHIFT);
        using var region = new MmapRegionBuilder(pageSize).WithFlags(flags).Build();
        Assert.Equal((pageSize, true, true), (region.PageSize, region.IsHugetlbfs, region.IsGuarded));
        Assert.Equal((0, Errno.EFAULT), (region.TryWrite(0, new byte[8], out var error), error));
        Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => region.AsVolatileSlice().Store(0, 1UL, AtomicOrdering.SeqCst)));
    }

    [HugePagesFact]
    public void FlagsWithoutASizeMeanTheDefaultHugePages()
    {
        var pageSize = HugePages.DefaultPageSize;
        Assert.Contains(HugePages.Pools(), pool => pool.PageSize == pageSize);
        using var region = new MmapRegionBuilder(pageSize).WithFlags(MapFlags.Private | MapFlags.NoReserve | MapFlags.HugeTlb).Build();
        Assert.Equal((pageSize, true, true), (region.PageSize, region.IsHugetlbfs, region.IsGuarded));
        using var memfd = new MmapRegionBuilder(pageSize).WithMemfd().WithFlags(MapFlags.Shared | MapFlags.NoReserve | MapFlags.HugeTlb).Build();
        Assert.Equal((pageSize, true, true), (memfd.PageSize, memfd.IsHugetlbfs, memfd.IsGuarded));
    }

    /// <summary>The kernel maps whole huge pages and unmaps only whole ones: another length would stay mapped for ever.</summary>
    [HugePagesFact]
    public void APartOfAHugePageIsRefused()
    {
        var flags = MapFlags.Private | MapFlags.NoReserve | MapFlags.HugeTlb;
        var before = HugeMappings();
        Assert.Equal(GuestMemoryError.UnalignedSize, Failure.Of(() => new MmapRegionBuilder(HugePages.DefaultPageSize + 4096).WithFlags(flags).Build().Dispose()));
        using (new MmapRegionBuilder(HugePages.DefaultPageSize).WithFlags(flags).Build()) Assert.Equal(before + 1, HugeMappings());
        Assert.Equal(before, HugeMappings());
    }

    [Theory]
    [InlineData(MapFlags.Private | MapFlags.Huge2MB, 0UL)]
    [InlineData(MapFlags.Private | MapFlags.HugeTlb | MapFlags.Huge1GB, TwoMegabytes)]
    [InlineData(MapFlags.Private | MapFlags.Huge1GB, TwoMegabytes)]
    public void FlagsThatContradictAreRefused(MapFlags flags, ulong pageSize) =>
        Assert.Equal(GuestMemoryError.ValueNotSupported, Failure.Of(() => new MmapRegionBuilder(1 << 30).WithFlags(flags).WithHugePages(pageSize).Build().Dispose()));

    [Fact]
    public void OrdinaryPagesAreNoHugePages() => Assert.Equal(GuestMemoryError.ValueNotSupported,
        Failure.Of(() => new MmapRegionBuilder(1 << 30).WithFlags(MapFlags.Private | MapFlags.HugeTlb).WithHugePages(HostPage.Size).Build().Dispose()));

    [Fact]
    public void AHugePageSizeThatNoHostHasIsRefusedInFlagsToo() => Assert.Equal(GuestMemoryError.HugePageSizeUnsupported,
        Failure.Of(() => new MmapRegionBuilder(1 << 30).WithFlags(MapFlags.Private | MapFlags.HugeTlb | (MapFlags)(22 << Mman.MAP_HUGE_SHIFT)).Build().Dispose()));

    /// <summary>Only hugetlbfs has huge pages; what a region of another file called them would be ordinary ones.</summary>
    [HugePagesFact]
    public void AFileOfAnotherFileSystemHasNoHugePages()
    {
        File.WriteAllBytes(_folder["f"], []);
        using (var file = File.OpenWrite(_folder["f"])) file.SetLength((long)HugePages.DefaultPageSize);
        MmapRegionBuilder Of() => new MmapRegionBuilder(HugePages.DefaultPageSize).WithFile(_folder["f"]);
        Assert.Equal(GuestMemoryError.HugePageSizeUnsupported, Failure.Of(() => Of().WithHugePages(HugePages.DefaultPageSize).Build().Dispose()));
        Assert.Equal(GuestMemoryError.HugePageSizeUnsupported, Failure.Of(() => Of().WithFlags(MapFlags.Shared | MapFlags.HugeTlb).Build().Dispose()));
        using var ordinary = Of().WithHugePages(HostPage.Size).Build();
        Assert.Equal((HostPage.Size, null), (ordinary.PageSize, ordinary.IsHugetlbfs));
    }

    /// <summary>A memfd of huge pages is a file of hugetlbfs: its pages are what they are.</summary>
    [HugePagesFact]
    public void AFileOfHugetlbfsHasTheHugePagesItHas()
    {
        var pageSize = HugePages.DefaultPageSize;
        using var file = Memfd.CreateSealed("huge", (long)pageSize, BitOperations.Log2(pageSize));
        using var handle = Descriptor.Duplicate(file);
        MmapRegionBuilder Of(ulong asked) => new MmapRegionBuilder(pageSize).WithFile(handle).WithFlags(MapFlags.Shared | MapFlags.NoReserve).WithHugePages(asked);
        using var region = Of(pageSize).Build();
        Assert.Equal((pageSize, true, true), (region.PageSize, region.IsHugetlbfs, region.IsGuarded));
        foreach (var other in HugePages.Pools().Where(pool => pool.PageSize != pageSize))
            Assert.Equal(GuestMemoryError.HugePageSizeUnsupported, Failure.Of(() => Of(other.PageSize).Build().Dispose()));
    }

    [Fact]
    public void MemoryHasOneSource()
    {
        File.WriteAllBytes(_folder["f"], new byte[4096]);
        using var file = File.OpenHandle(_folder["f"], FileMode.Open, FileAccess.ReadWrite);
        foreach (var builder in (MmapRegionBuilder[])
            [
                new MmapRegionBuilder(4096).WithMemfd().WithFile(_folder["f"]),
                new MmapRegionBuilder(4096).WithFile(file).WithMemfd(),
                new MmapRegionBuilder(4096).WithRawPointer(0x10000).WithMemfd(),
            ])
            Assert.Equal(GuestMemoryError.ValueNotSupported, Failure.Of(() => builder.Build().Dispose()));
        using var raw = new MmapRegionBuilder(4096).WithRawPointer(0x10000).WithFile(_folder["f"], 4096).Build();
        Assert.Equal(4096UL, raw.File!.Start);
        // The file that was named last is the file.
        File.WriteAllBytes(_folder["g"], [7, .. new byte[4095]]);
        using var last = new MmapRegionBuilder(4096).WithFile(file).WithFile(_folder["g"]).Build();
        Assert.Equal((_folder["g"], 7), (last.BackingPath, last.AsVolatileSlice().ReadObject<byte>(0)));
    }

    private static int HugeMappings() => File.ReadLines("/proc/self/maps").Count(line => line.Contains("/anon_hugepage", StringComparison.Ordinal));
}
