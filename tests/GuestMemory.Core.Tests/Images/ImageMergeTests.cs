using System.Security.Cryptography;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Tests;

/// <summary>Diffs merged into their base, in place and into a new file.</summary>
public sealed class ImageMergeTests : IDisposable
{
    private const int Page = ImageFiles.Page;
    private const int Pages = 64;

    private readonly TestFolder _folder = new();
    private readonly byte[] _base = ImageFiles.Content(Pages);

    public ImageMergeTests() => File.WriteAllBytes(_folder["base"], _base);

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WritesThePagesOfTheDiffsInTheirOrder(bool toNewFile)
    {
        var expected = _base.ToArray();
        MakeDiff("first", expected, (3, 4, 1), (63, 1, 2));
        MakeDiff("second", expected, (4, 1, 3), (10, 2, 4));
        var progress = new List<(ulong Done, ulong Total)>();
        var info = ImageMerge.Merge(_folder["base"], [_folder["first"], _folder["second"]], toNewFile ? _folder["out"] : null, progress: (done, total) => progress.Add((done, total)), cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(expected, File.ReadAllBytes(_folder[toNewFile ? "out" : "base"]));
        if (toNewFile) Assert.Equal(_base, File.ReadAllBytes(_folder["base"]));
        Assert.Equal((_folder[toNewFile ? "out" : "base"], ImageFormat.Raw, 8L, 8UL * Page), (info.Path, info.Format, info.PageCount, info.BytesWritten));
        Assert.Equal(progress[^1].Total, progress[^1].Done);
        AssertNothingBeside();
    }

    [Fact]
    public void GoesByTheBitsBesideADiff()
    {
        // A dense file, of which only two pages count, and one of them is zeros.
        File.WriteAllBytes(_folder["diff"], ImageFiles.Content(Pages, first: 500));
        Overwrite("diff", 7, new byte[Page]);
        DirtySidecar.Write(_folder["diff"], Pages * Page, [(1UL << 7) | (1UL << 9)]);
        ImageMerge.Merge(_folder["base"], [_folder["diff"]], cancellation: TestContext.Current.CancellationToken);
        var expected = _base.ToArray();
        foreach (var page in new[] { 7, 9 }) File.ReadAllBytes(_folder["diff"]).AsSpan(page * Page, Page).CopyTo(expected.AsSpan(page * Page));
        Assert.Equal(expected, File.ReadAllBytes(_folder["base"]));
    }

    [Fact]
    public void MergesWhatIsExportedOfAMemory()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * Page).WithDirtyTracking().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.WriteExact(new GuestAddress(0), _base);
        RawImage.WriteFull(memory, _folder["base"], overwrite: true);
        region.GetDirtyBitmap(clear: true);
        memory.WriteExact(new GuestAddress(5 * Page), new byte[3]);
        RawImage.WriteDirty(memory, _folder["1.diff"], force: false);
        memory.WriteExact(new GuestAddress(60 * Page), [7]);
        RawImage.WriteDirty(memory, _folder["2.diff"], force: false);
        ImageMerge.Merge(_folder["base"], [_folder["1.diff"], _folder["2.diff"]], _folder["out"], cancellation: TestContext.Current.CancellationToken);
        var now = new byte[Pages * Page];
        memory.ReadExact(new GuestAddress(0), now);
        Assert.Equal(now, File.ReadAllBytes(_folder["out"]));
        // A diff as the base has the pages of both afterwards.
        Assert.Equal(ImageFormat.Diff, ImageMerge.Merge(_folder["1.diff"], [_folder["2.diff"]], cancellation: TestContext.Current.CancellationToken).Format);
        Assert.Equal((1UL << 5) | (1UL << 60), Assert.Single(DirtySidecar.TryLoad(_folder["1.diff"], Pages * Page)!));
        ImageMerge.Merge(_folder["base"], [_folder["1.diff"]], cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(now, File.ReadAllBytes(_folder["base"]));
    }

    [Fact]
    public void KeepsTheHolesOfTheBase()
    {
        using (var file = File.OpenHandle(_folder["sparse"], FileMode.Create, FileAccess.Write))
        {
            RandomAccess.SetLength(file, 64 << 20);
            RandomAccess.Write(file, _base.AsSpan(0, Page), 8 << 20);
        }

        using (var file = File.OpenHandle(_folder["diff"], FileMode.Create, FileAccess.Write))
        {
            RandomAccess.SetLength(file, 64 << 20);
            RandomAccess.Write(file, _base.AsSpan(0, Page), 16 << 20);
        }

        ImageMerge.Merge(_folder["sparse"], [_folder["diff"]], _folder["out"], cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(0, FileStatus.TryGet(_folder["out"], out var status));
        Assert.True(status.stx_blocks * 512 < 1 << 20, $"{status.stx_blocks} blocks");
        Assert.Equal(Convert.ToUInt32("600", 8), status.stx_mode & 0xfffu);
        using var merged = File.OpenHandle(_folder["out"]);
        var page = new byte[Page];
        foreach (var at in new[] { 8L << 20, 16L << 20 })
        {
            RandomAccess.Read(merged, page, at);
            Assert.True(page.AsSpan().SequenceEqual(_base.AsSpan(0, Page)));
        }
    }

    [Fact]
    public void RefusesWhatWouldGiveAnotherMemory()
    {
        var token = TestContext.Current.CancellationToken;
        File.WriteAllBytes(_folder["dense"], _base);
        Refuses(GuestMemoryError.LayerUntrusted, "dense");
        MakeDiff("diff", _base.ToArray(), (1, 1, 1));
        Refuses(GuestMemoryError.ImageNotFound, "diff", "missing");
        Refuses(GuestMemoryError.ValueNotSupported);
        File.CreateSymbolicLink(_folder["link"], _folder["base"]);
        Refuses(GuestMemoryError.ValueNotSupported, "link");
        File.WriteAllBytes(_folder["short"], _base[..^Page]);
        Refuses(GuestMemoryError.BaseSizeMismatch, "diff", "short");
        File.WriteAllBytes(_folder["lime"], ImageFiles.Lime((0, _base)));
        Refuses(GuestMemoryError.ImageUnsupported, "lime");
        Assert.Equal(GuestMemoryError.ImageUnsupported, Fails(() => ImageMerge.Merge(_folder["lime"], [_folder["diff"]], cancellation: token)));
        Assert.Equal(GuestMemoryError.FileExists, Fails(() => ImageMerge.Merge(_folder["base"], [_folder["diff"]], _folder["lime"], cancellation: token)));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Fails(() => ImageMerge.Merge(_folder["base"], [_folder["diff"]], _folder["diff"], force: true, cancellation: token)));
        DirtySidecar.Write(_folder["diff"], Pages * Page, [2]);
        File.SetLastWriteTimeUtc(_folder["diff"], DateTime.UtcNow.AddSeconds(10));
        Refuses(GuestMemoryError.LayerUntrusted, "diff");
        File.WriteAllText(_folder["diff.dirty"], "GMDIRTY1 and nothing of it");
        Refuses(GuestMemoryError.InvalidImage, "diff");
        // Force takes a file without holes for its word.
        ImageMerge.Merge(_folder["base"], [_folder["dense"]], force: true, cancellation: token);

        void Refuses(GuestMemoryError error, params string[] diffs)
        {
            Assert.Equal(error, Fails(() => ImageMerge.Merge(_folder["base"], [.. diffs.Select(name => _folder[name])], cancellation: token)));
            Assert.Equal(error, Fails(() => ImageMerge.Merge(_folder["base"], [.. diffs.Select(name => _folder[name])], _folder["new"], cancellation: token)));
            Assert.False(File.Exists(_folder["new"]));
            Assert.Equal(_base, File.ReadAllBytes(_folder["base"]));
        }
    }

    [Fact]
    public void RefusesBitsThatAreOlderThanTheBase()
    {
        var token = TestContext.Current.CancellationToken;
        MakeDiff("1.diff", _base.ToArray(), (3, 1, 1));
        MakeDiff("2.diff", _base.ToArray(), (5, 1, 2));
        // Of what the first diff was before another program wrote it.
        DirtySidecar.Write(_folder["1.diff"], Pages * Page, [1UL << 60]);
        File.SetLastWriteTimeUtc(_folder["1.diff"], DateTime.UtcNow.AddSeconds(10));
        var before = File.ReadAllBytes(_folder["1.diff"]);
        Assert.Equal(GuestMemoryError.LayerUntrusted, Fails(() => ImageMerge.Merge(_folder["1.diff"], [_folder["2.diff"]], cancellation: token)));
        Assert.Equal(GuestMemoryError.LayerUntrusted, Fails(() => ImageMerge.Merge(_folder["1.diff"], [_folder["2.diff"]], _folder["out"], cancellation: token)));
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * Page).WithDirtyTracking().Build(), new GuestAddress(0));
        region.Write(new MemoryRegionAddress(7 * Page), new byte[3]);
        Assert.Equal(GuestMemoryError.LayerUntrusted, Fails(() => RawImage.WriteDirty(GuestMemoryMmap.FromRegions([region]), _folder["1.diff"], force: false)));
        Assert.Equal(1L, region.GetDirtyBitmap().DirtyCount);
        Assert.Equal(before, File.ReadAllBytes(_folder["1.diff"]));
        Assert.False(File.Exists(_folder["out"]));
        // Force takes them for its word.
        RawImage.WriteDirty(GuestMemoryMmap.FromRegions([region]), _folder["1.diff"], force: true);
        File.SetLastWriteTimeUtc(_folder["1.diff"], DateTime.UtcNow.AddSeconds(10));
        ImageMerge.Merge(_folder["1.diff"], [_folder["2.diff"]], force: true, cancellation: token);
        Assert.Equal((1UL << 5) | (1UL << 7) | (1UL << 60), Assert.Single(DirtySidecar.TryLoad(_folder["1.diff"], Pages * Page)!));
    }

    [Fact]
    public void WritesAPageOfZerosIntoABaseThatIsToldByHoles()
    {
        MakeDiff("1.diff", _base.ToArray(), (1, 1, 1));
        MakeDiff("2.diff", _base.ToArray(), (2, 1, 2), (9, 1, 3));
        // Pages 7 and 8 are holes of this diff, and zeros of its memory.
        DirtySidecar.Write(_folder["2.diff"], Pages * Page, [(1UL << 2) | (1UL << 7) | (1UL << 8) | (1UL << 9)]);
        ImageMerge.Merge(_folder["1.diff"], [_folder["2.diff"]], cancellation: TestContext.Current.CancellationToken);
        using var file = File.OpenHandle(_folder["1.diff"]);
        Assert.Equal(7L * Page, Extents.NextData(file, 3L * Page, Pages * Page));
        Assert.Equal(10L * Page, Extents.NextHole(file, 7L * Page, Pages * Page));
        var read = new byte[Page];
        RandomAccess.Read(file, read, 8L * Page);
        Assert.False(read.AsSpan().ContainsAnyExcept((byte)0));
        RandomAccess.Read(file, read, 9L * Page);
        Assert.True(File.ReadAllBytes(_folder["2.diff"]).AsSpan(9 * Page, Page).SequenceEqual(read));
    }

    [Fact]
    public void SaysThatADiskIsFull()
    {
        using var disk = SmallDisk.TryMake(_folder["disk"], 128 * Page);
        Assert.SkipWhen(disk is null, "needs root, to mount a small tmpfs");
        foreach (var name in new[] { "disk/base", "disk/diff" })
        {
            using var file = File.OpenHandle(_folder[name], FileMode.Create, FileAccess.Write);
            RandomAccess.SetLength(file, 512 * Page);
            RandomAccess.Write(file, ImageFiles.Content(name == "disk/diff" ? 80 : 1), 0);
        }

        Assert.Equal(GuestMemoryError.DiskFull, Fails(() => ImageMerge.Merge(_folder["disk/base"], [_folder["disk/diff"]], cancellation: TestContext.Current.CancellationToken)));
        Assert.Equal(GuestMemoryError.DiskFull, Fails(() => ImageMerge.Merge(_folder["disk/base"], [_folder["disk/diff"]], _folder["disk/out"], cancellation: TestContext.Current.CancellationToken)));
        Assert.Equal(2, Directory.GetFiles(_folder["disk"]).Length);
    }

    [Fact]
    public void RefusesALinkInASharedFolder()
    {
        Directory.CreateDirectory(_folder["shared"]);
        Assert.Equal(0, FileStatus.TryChangeMode(_folder["shared"], 0b1_111_111_111));
        MakeDiff("diff", _base.ToArray(), (1, 1, 1));
        foreach (var name in new[] { "base", "diff" }) File.CreateSymbolicLink(_folder[$"shared/{name}"], _folder[name]);
        foreach (var (image, diff) in new[] { ("shared/base", "diff"), ("base", "shared/diff") })
            Assert.Equal(GuestMemoryError.NotAFile, Fails(() => ImageMerge.Merge(_folder[image], [_folder[diff]], cancellation: TestContext.Current.CancellationToken)));
        Assert.Equal(_base, File.ReadAllBytes(_folder["base"]));
    }

    [Fact]
    public void RefusesABaseThatIsInUse()
    {
        MakeDiff("diff", _base.ToArray(), (1, 1, 1));
        using var served = File.OpenHandle(_folder["base"], FileMode.Open, FileAccess.Read, FileShare.Read);
        Assert.Equal(GuestMemoryError.ImageInUse, Fails(() => ImageMerge.Merge(_folder["base"], [_folder["diff"]], cancellation: TestContext.Current.CancellationToken)));
        Assert.Equal(_base, File.ReadAllBytes(_folder["base"]));
        // It is only read for a new file.
        ImageMerge.Merge(_folder["base"], [_folder["diff"]], _folder["out"], cancellation: TestContext.Current.CancellationToken);
    }

    [Fact]
    public void TakesAwayTheDigestOfWhatTheBaseWas()
    {
        File.WriteAllText(_folder["base.sha256"], $"{Convert.ToHexStringLower(SHA256.HashData(_base))}  base\n");
        MakeDiff("diff", _base.ToArray(), (1, 1, 1));
        ImageMerge.Merge(_folder["base"], [_folder["diff"]], _folder["out"], cancellation: TestContext.Current.CancellationToken);
        Assert.True(File.Exists(_folder["base.sha256"]));
        ImageMerge.Merge(_folder["base"], [_folder["diff"]], cancellation: TestContext.Current.CancellationToken);
        Assert.False(File.Exists(_folder["base.sha256"]));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ACancelledMergeLeavesTheOldFile(bool overwrites)
    {
        MakeDiff("diff", _base.ToArray(), (1, 1, 1), (20, 1, 2));
        if (overwrites) File.WriteAllText(_folder["out"], "old");
        using var source = new CancellationTokenSource();
        Assert.ThrowsAny<OperationCanceledException>(() => ImageMerge.Merge(_folder["base"], [_folder["diff"]], _folder["out"], force: true, (_, _) => source.Cancel(), source.Token));
        Assert.Equal(overwrites ? "old" : null, File.Exists(_folder["out"]) ? File.ReadAllText(_folder["out"]) : null);
        AssertNothingBeside();
        // In place the same merge again completes what was cut short.
        using var second = new CancellationTokenSource();
        Assert.ThrowsAny<OperationCanceledException>(() => ImageMerge.Merge(_folder["base"], [_folder["diff"]], null, false, (_, _) => second.Cancel(), second.Token));
        ImageMerge.Merge(_folder["base"], [_folder["diff"]], cancellation: TestContext.Current.CancellationToken);
        var expected = _base.ToArray();
        MakeDiff("same", expected, (1, 1, 1), (20, 1, 2));
        Assert.Equal(expected, File.ReadAllBytes(_folder["base"]));
    }

    private static GuestMemoryError Fails(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    /// <summary>A sparse file with runs of pages, which are written to what is expected, too.</summary>
    private void MakeDiff(string name, byte[] expected, params (int Page, int Count, int Seed)[] runs)
    {
        using var file = File.OpenHandle(_folder[name], FileMode.Create, FileAccess.Write);
        RandomAccess.SetLength(file, Pages * Page);
        foreach (var (page, count, seed) in runs)
        {
            var bytes = new byte[count * Page];
            new Random(seed).NextBytes(bytes);
            RandomAccess.Write(file, bytes, page * Page);
            bytes.CopyTo(expected, page * Page);
        }
    }

    private void Overwrite(string name, int page, byte[] bytes)
    {
        using var file = File.OpenHandle(_folder[name], FileMode.Open, FileAccess.Write);
        RandomAccess.Write(file, bytes, page * Page);
    }

    private void AssertNothingBeside() => Assert.Empty(Directory.GetFiles(_folder.Path, ".*"));
}
