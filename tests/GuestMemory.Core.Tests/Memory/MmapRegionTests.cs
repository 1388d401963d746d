namespace GuestMemory.Core.Tests;

/// <summary>The vectors of mmap-region-and-xen.md, section 3.1 to 3.5, and what this builder adds.</summary>
public sealed class MmapRegionTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void V3_1_AnonymousRegion()
    {
        var error = Assert.Throws<SyscallException>(() => new MmapRegionBuilder(0).Build());
        Assert.Equal((GuestMemoryError.ZeroSize, "mmap", "EINVAL"), (error.Error, error.Function, error.ErrnoName));
        using var region = new MmapRegionBuilder(4096).Build();
        Assert.Equal(4096UL, region.Size);
        Assert.Null(region.File);
        Assert.Equal(3, (int)region.Protection);
        Assert.Equal(0x4022, (int)region.Flags);
        Assert.Null(region.IsHugetlbfs);
        using var marked = new MmapRegionBuilder(4096).WithHugetlbfs(true).Build();
        Assert.True(marked.IsHugetlbfs);
        using var unmarked = new MmapRegionBuilder(4096).WithHugetlbfs(false).Build();
        Assert.False(unmarked.IsHugetlbfs);
    }

    [Fact]
    public void V3_2_FileRegion()
    {
        File.WriteAllBytes(_folder["f"], [1, 2, 3, 4, 5]);
        using var region = new MmapRegionBuilder(5).WithFile(_folder["f"]).Build();
        Assert.Equal((5UL, 0UL, 3, 0x4001), (region.Size, region.File!.Start, (int)region.Protection, (int)region.Flags));
        var bytes = new byte[16];
        Assert.Equal(5, region.TryRead(0, bytes, out var error));
        Assert.Equal(0, error);
        Assert.Equal([1, 2, 3, 4, 5], bytes[..5]);
    }

    [Fact]
    public void V3_3_FileOffsetsAndFixed()
    {
        File.WriteAllBytes(_folder["f"], new byte[10240]);
        MmapRegionBuilder At(ulong offset, MapFlags flags) => new MmapRegionBuilder(1000).WithFile(_folder["f"], offset).WithFlags(flags);
        var far = Assert.Throws<SyscallException>(() => At(ulong.MaxValue, MapFlags.NoReserve | MapFlags.Private).Build());
        Assert.Equal("EINVAL", far.ErrnoName);
        var mapFixed = Assert.Throws<GuestMemoryException>(() => At(4096, MapFlags.Private | MapFlags.Fixed).Build());
        Assert.Equal(GuestMemoryError.MapFixed, mapFixed.Error);
        var unaligned = Assert.Throws<SyscallException>(() => At(4095, MapFlags.NoReserve | MapFlags.Private).Build());
        Assert.Equal((GuestMemoryError.UnalignedOffset, "EINVAL"), (unaligned.Error, unaligned.ErrnoName));
        using var region = At(4096, MapFlags.NoReserve | MapFlags.Private).Build();
        Assert.Equal((1000UL, 4096UL, true), (region.Size, region.File!.Start, region.IsOwned));
    }

    [Fact]
    public void V3_4_RawPointer()
    {
        var error = Assert.Throws<GuestMemoryException>(() => new MmapRegionBuilder(4096).WithRawPointer(1).Build());
        Assert.Equal(GuestMemoryError.InvalidPointer, error.Error);
        using var region = new MmapRegionBuilder(4096).WithRawPointer(0).Build();
        Assert.False(region.IsOwned);
    }

    [Fact]
    public void V3_3_TheBuilderRecordsWhatItIsTold()
    {
        using var region = new MmapRegionBuilder(0x100000).WithHugetlbfs(true).WithProtection(MemoryProtection.ReadWrite).WithTracker(AtomicBitmap.WithLength(0x100000)).Build();
        Assert.Equal((0x100000UL, true, 3, 0x4022, true), (region.Size, region.IsHugetlbfs, (int)region.Protection, (int)region.Flags, region.IsOwned));
        // The generic test of 16.16: what is marked shows through views further on.
        IBitmap bitmap = region.Bitmap!;
        var view = bitmap.SliceAt(0x400);
        Assert.False(view.IsDirtyAt(0));
        bitmap.MarkDirty(0x400, 0x100);
        for (ulong offset = 0; offset < 0x100; offset++) Assert.True(view.IsDirtyAt(offset) && bitmap.IsDirtyAt(0x400 + offset));
        region.GetSlice(0x80000, 16).WriteObject(8, 1UL);
        Assert.Equal((true, false), (bitmap.IsDirtyAt(0x80008), bitmap.IsDirtyAt(0x81000)));
    }

    /// <summary>Two regions of a file of 10240 bytes, of another file, or of none.</summary>
    [Theory]
    [InlineData("a", 0, 4096, "a", 4096, 4096, false)]
    [InlineData("a", 0, 5000, "a", 4096, 4096, true)]
    [InlineData("a", 0, 5000, "a", 0, 1000, true)]
    [InlineData("a", 0, 4096, "b", 0, 4096, false)]
    [InlineData("a", 0, 4096, null, 0, 4096, false)]
    [InlineData(null, 0, 4096, null, 0, 4096, false)]
    [InlineData("a", 4096, 4096, "a", 0, 10240, true)]
    public void V3_5_FdsOverlap(string? first, ulong firstStart, ulong firstSize, string? second, ulong secondStart, ulong secondSize, bool expected)
    {
        using var a = Of(first, firstStart, firstSize);
        using var b = Of(second, secondStart, secondSize);
        Assert.Equal((expected, expected), (a.FdsOverlap(b), b.FdsOverlap(a)));

        MmapRegion Of(string? name, ulong start, ulong size)
        {
            var builder = new MmapRegionBuilder(size);
            if (name is null) return builder.Build();
            if (!File.Exists(_folder[name])) File.WriteAllBytes(_folder[name], new byte[10240]);
            return builder.WithFile(_folder[name], start).Build();
        }
    }

    [Fact]
    public void V3_5_MemfdsAreFiles()
    {
        using var one = new MmapRegionBuilder(4096).WithMemfd().Build();
        using var another = new MmapRegionBuilder(4096).WithMemfd().Build();
        using var again = new MmapRegionBuilder(4096).WithFile(one.File!.File).Build();
        Assert.Equal((false, true, true), (one.FdsOverlap(another), one.FdsOverlap(again), one.FdsOverlap(one)));
    }

    [Fact]
    public void MappingPastTheEndOfItsFileIsRefused()
    {
        File.WriteAllBytes(_folder["f"], new byte[4096]);
        var before = Maps();
        var error = Assert.Throws<GuestMemoryException>(() => new MmapRegionBuilder(8192).WithFile(_folder["f"]).Build());
        Assert.Equal(GuestMemoryError.MappingPastEof, error.Error);
        Assert.Equal(before, Maps());
    }

    [Fact]
    public void ReleaseUnmaps()
    {
        var region = new MmapRegionBuilder(4096).WithMemfd().Build();
        Assert.Contains("guest_mem", File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
        region.Dispose();
        Assert.DoesNotContain("guest_mem", File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
        Assert.Equal(GuestMemoryError.RegionDisposed, Assert.Throws<GuestMemoryException>(() => region.TryRead(0, new byte[1], out _)).Error);
    }

    [Fact]
    public void OnlyMemoryThatCannotFailIsAccessedDirectly()
    {
        File.WriteAllBytes(_folder["f"], new byte[4096]);
        using var anonymous = new MmapRegionBuilder(4096).Build();
        using var memfd = new MmapRegionBuilder(4096).WithMemfd().Build();
        using var file = new MmapRegionBuilder(4096).WithFile(_folder["f"]).Build();
        using var readOnly = new MmapRegionBuilder(4096).WithProtection(MemoryProtection.Read).Build();
        Assert.Equal((false, false, true, true), (anonymous.IsGuarded, memfd.IsGuarded, file.IsGuarded, readOnly.IsGuarded));
    }

    /// <summary>A memfd that another process made: it keeps its length, and a hole that is punched into it reads as zeros.</summary>
    [Fact]
    public void AMemfdThatIsSealedAgainstShrinkingIsAccessedDirectly()
    {
        using var memfd = Interop.Memfd.CreateSealed("test", 0x4000, 0);
        using var handle = Interop.Descriptor.Duplicate(memfd);
        using var region = new MmapRegionBuilder(0x2000).WithFile(handle, 0x1000).Build();
        using var byPath = new MmapRegionBuilder(0x2000).WithFile($"/proc/self/fd/{memfd.Number}", 0x1000).Build();
        using var readOnly = new MmapRegionBuilder(0x2000).WithFile(handle, 0x1000).WithProtection(MemoryProtection.Read).Build();
        Assert.Equal((false, false, true), (region.IsGuarded, byPath.IsGuarded, readOnly.IsGuarded));
        byPath.AsVolatileSlice().WriteObject(0x1000, 0x1234);
        Assert.Equal(0x1234, region.AsVolatileSlice().ReadObject<int>(0x1000));
        byPath.Discard(0, 0x2000);
        Assert.Equal(0, region.AsVolatileSlice().ReadObject<int>(0x1000));
        Assert.Equal(GuestMemoryError.MappingPastEof, Assert.ThrowsAny<GuestMemoryException>(() => new MmapRegionBuilder(0x2000).WithFile(handle, 0x3000).Build()).Error);
    }

    [Fact]
    public void ForbiddenAccessIsAnErrorAndNotASignal()
    {
        using var nothing = new MmapRegionBuilder(4096).WithProtection(MemoryProtection.None).Build();
        Assert.Equal(0, nothing.TryRead(0, new byte[8], out var error));
        Assert.Equal(Errno.EFAULT, error);
        using var readOnly = new MmapRegionBuilder(4096).WithProtection(MemoryProtection.Read).WithDirtyTracking().Build();
        Assert.Equal(8, readOnly.TryRead(0, new byte[8], out _));
        Assert.Equal(0, readOnly.TryWrite(0, new byte[8], out error));
        Assert.Equal(Errno.EFAULT, error);
        Assert.Equal(0, ((AtomicBitmap)readOnly.Bitmap!.Tracker!).CountDirty());
    }

    [Fact]
    public void TruncatedFileIsAnErrorAndNotASignal()
    {
        File.WriteAllBytes(_folder["f"], new byte[16384]);
        using var region = new MmapRegionBuilder(16384).WithFile(_folder["f"]).Build();
        using (var file = File.OpenWrite(_folder["f"])) file.SetLength(4096);
        var buffer = new byte[16384];
        Assert.Equal(4096, region.TryRead(0, buffer, out var error));
        Assert.Equal(Errno.EFAULT, error);
    }

    [Fact]
    public void DiscardGivesZeros()
    {
        foreach (var region in new[] { new MmapRegionBuilder(8192).Build(), new MmapRegionBuilder(8192).WithMemfd().Build() })
        {
            using (region)
            {
                region.TryWrite(0, Enumerable.Repeat((byte)7, 8192).ToArray(), out _);
                region.Discard(0, 4096);
                var bytes = new byte[8192];
                region.TryRead(0, bytes, out _);
                Assert.True(bytes.AsSpan(0, 4096).IndexOfAnyExcept((byte)0) < 0);
                Assert.True(bytes.AsSpan(4096).IndexOfAnyExcept((byte)7) < 0);
                Assert.Equal(GuestMemoryError.InvalidBackendAddress, Assert.Throws<GuestMemoryException>(() => region.Discard(4096, 8192)).Error);
                Assert.Equal("EINVAL", Assert.Throws<SyscallException>(() => region.Discard(1, 4096)).ErrnoName);
            }
        }
    }

    [RootFact]
    public void HugePagesComeFromTheirPool()
    {
        using var pool = new HugePagePoolOf(2 << 20, 4);
        using var region = new MmapRegionBuilder(4 << 20).WithHugePages(2 << 20).Build();
        Assert.Equal((2UL << 20, true, true), (region.PageSize, region.IsHugetlbfs, region.IsGuarded));
        Assert.Equal(8, region.TryWrite(0, new byte[8], out _));
        var tooLarge = Assert.Throws<SyscallException>(() => new MmapRegionBuilder(1UL << 40).WithHugePages(2 << 20).Build());
        Assert.Equal(GuestMemoryError.HugePagesExhausted, tooLarge.Error);
        Assert.Equal(GuestMemoryError.UnalignedSize, Assert.Throws<GuestMemoryException>(() => new MmapRegionBuilder(4096).WithHugePages(2 << 20).Build()).Error);
        Assert.Equal(GuestMemoryError.HugePageSizeUnsupported, Assert.Throws<GuestMemoryException>(() => new MmapRegionBuilder(12 << 20).WithHugePages(3 << 20).Build()).Error);
    }

    private static int Maps() => File.ReadLines("/proc/self/maps").Count(line => line.EndsWith("/f", StringComparison.Ordinal));
}
