using System.Security.Cryptography;

namespace GuestMemory.Core.Tests;

/// <summary>What holds for every format that has the whole memory.</summary>
public sealed class WholeImageTests : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly GuestRegionMmap _region = new(new MmapRegionBuilder(0x300000).WithDirtyTracking().Build(), new GuestAddress(0x100000), "low");

    public static TheoryData<ImageFormat> Formats => [.. ImageWriting.Formats];

    private GuestMemoryMmap Memory => GuestMemoryMmap.FromRegions([_region]);

    public void Dispose()
    {
        _region.Dispose();
        _folder.Dispose();
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void TheDigestIsOfTheFileAndBesideIt(ImageFormat format)
    {
        Memory.Write(new GuestAddress(0x101000), [1, 2, 3]);
        Memory.Write(new GuestAddress(0x3ff000), [1, 2, 3]);
        var info = ImageWriting.Write(format, Memory, _folder["image"], digest: true);
        // A chunk is written as a whole.
        Assert.Equal((format, 0x300000UL, format == ImageFormat.Chunked ? 32L : 2), (info.Format, info.Size, info.PageCount));
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(File.ReadAllBytes(_folder["image"]))), info.Digest);
        Assert.Equal($"{info.Digest}  image\n", File.ReadAllText(_folder["image.sha256"]));
        Assert.Equal((0b110_000_000, 0b110_000_000), (ModeOf(_folder["image"]), ModeOf(_folder["image.sha256"])));
        // One that is replaced leaves no digest of what it was.
        Memory.Write(new GuestAddress(0x101000), [9]);
        Assert.Null(ImageWriting.Write(format, Memory, _folder["image"], overwrite: true).Digest);
        Assert.Equal("image", Path.GetFileName(Assert.Single(Directory.GetFiles(_folder.Path))));
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void ACancelledExportLeavesNothing(ImageFormat format)
    {
        using var cancellation = new CancellationTokenSource();
        Assert.ThrowsAny<OperationCanceledException>(() => ImageWriting.Write(format, Memory, _folder["image"], digest: true, progress: _ => cancellation.Cancel(), cancellation: cancellation.Token));
        Assert.Empty(Directory.GetFiles(_folder.Path));
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void TheProgressIsThatOfTheMemory(ImageFormat format)
    {
        using var other = new GuestRegionMmap(new MmapRegionBuilder(0x2000).Build(), new GuestAddress(0x1000000));
        var told = new List<ulong>();
        ImageWriting.Write(format, GuestMemoryMmap.FromRegions([_region, other]), _folder["image"], progress: told.Add);
        Assert.Equal([0x100000, 0x200000, 0x300000, 0x302000], told);
    }

    [Theory]
    [MemberData(nameof(Formats))]
    public void AFileThatIsThereStaysUnlessItMayBeReplaced(ImageFormat format)
    {
        File.WriteAllText(_folder["image"], "mine");
        Assert.Equal(GuestMemoryError.FileExists, Assert.Throws<GuestMemoryException>(() => ImageWriting.Write(format, Memory, _folder["image"], digest: true)).Error);
        Assert.Equal("mine", File.ReadAllText(_folder["image"]));
        File.Delete(_folder["image"]);
        // What is no digest of this image stays, too.
        File.WriteAllText(_folder["image.sha256"], "my notes");
        Assert.Equal(GuestMemoryError.FileExists, Assert.Throws<GuestMemoryException>(() => ImageWriting.Write(format, Memory, _folder["image"], digest: true)).Error);
        Assert.Equal("image.sha256", Path.GetFileName(Assert.Single(Directory.GetFiles(_folder.Path))));
        ImageWriting.Write(format, Memory, _folder["image"]);
        Assert.Equal("my notes", File.ReadAllText(_folder["image.sha256"]));
    }

    [Fact]
    public void ADiffInAnImageTakesTheDigestOfItAway()
    {
        RawImage.WriteFull(Memory, _folder["base"], overwrite: false, digest: true);
        Memory.Write(new GuestAddress(0x101000), [1]);
        RawImage.WriteDirty(Memory, _folder["base"], force: false);
        Assert.False(File.Exists(_folder["base.sha256"]));
    }

    [Fact]
    public void ANameWithALineBreakIsWrittenAsSha256sumReadsIt()
    {
        var path = _folder["a\\b\nc"];
        var digest = RawImage.WriteFull(Memory, path, overwrite: false, digest: true).Digest;
        Assert.Equal($"\\{digest}  a\\\\b\\nc\n", File.ReadAllText(path + ".sha256"));
        RawImage.WriteFull(Memory, path, overwrite: true);
        Assert.False(File.Exists(path + ".sha256"));
    }

    [Fact]
    public void AFolderWithoutRoomKeepsTheOldFileAndTakesWhatFits()
    {
        using var disk = SmallDisk.TryMake(_folder["disk"], 1 << 20);
        Assert.SkipWhen(disk is null, "needs root, to mount a small tmpfs");
        var path = Path.Combine(_folder["disk"], "image");
        File.WriteAllText(path, "mine");
        for (var at = 0x100000UL; at < 0x400000; at += 0x1000) Memory.Write(new GuestAddress(at), [0xcc]);
        foreach (var format in ImageWriting.Formats)
        {
            // Compressed ones are small enough.
            if (format is ImageFormat.Avml or ImageFormat.Chunked) continue;
            var failure = Assert.Throws<GuestMemoryException>(() => ImageWriting.Write(format, Memory, path, overwrite: true, progress: _ => Assert.Fail("Nothing is to be written.")));
            Assert.Equal(GuestMemoryError.DiskFull, failure.Error);
            Assert.Contains((3 << 20).ToString(System.Globalization.CultureInfo.InvariantCulture), failure.Message, StringComparison.Ordinal);
        }

        var diff = Assert.Throws<GuestMemoryException>(() => RawImage.WriteDirty(Memory, Path.Combine(_folder["disk"], "diff"), force: false));
        Assert.Equal((GuestMemoryError.DiskFull, 0x300), (diff.Error, (int)_region.GetDirtyBitmap().DirtyCount));
        Assert.Equal("image", Path.GetFileName(Assert.Single(Directory.GetFiles(_folder["disk"]))));
        Assert.Equal("mine", File.ReadAllText(path));

        // As long as the disk, three times: what is not zero fits.
        Memory.Write(new GuestAddress(0x100000), new byte[0x300000]);
        Memory.Write(new GuestAddress(0x3ff000), [1]);
        Assert.Equal(1, RawImage.WriteFull(Memory, path, overwrite: true).PageCount);
    }

    [Theory]
    [InlineData(ImageFormat.Avml)]
    [InlineData(ImageFormat.Chunked)]
    public void WhatDoesNotFitCompressedKeepsTheOldFile(ImageFormat format)
    {
        using var disk = SmallDisk.TryMake(_folder["disk"], 1 << 20);
        Assert.SkipWhen(disk is null, "needs root, to mount a small tmpfs");
        var path = Path.Combine(_folder["disk"], "image");
        File.WriteAllText(path, "mine");
        Memory.Write(new GuestAddress(0x100000), RandomNumberGenerator.GetBytes(0x300000));
        Assert.Equal(GuestMemoryError.DiskFull, Assert.Throws<GuestMemoryException>(() => ImageWriting.Write(format, Memory, path, overwrite: true)).Error);
        Assert.Equal("image", Path.GetFileName(Assert.Single(Directory.GetFiles(_folder["disk"]))));
        Assert.Equal("mine", File.ReadAllText(path));
    }

    [Fact]
    public void TheFileBehindARegionIsNoTargetByAnyName()
    {
        _folder.WriteImage("vm", 4);
        File.CreateSymbolicLink(_folder["link"], _folder["vm"]);
        Assert.Equal(0, HardLink(_folder["vm"], _folder["hard"]));
        using var file = File.OpenHandle(_folder["vm"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x4000).WithFile(file, 0).WithDirtyTracking().Build(), new GuestAddress(0x1000000), "backed");
        var memory = GuestMemoryMmap.FromRegions([_region, region]);
        var before = File.ReadAllBytes(_folder["vm"]);
        foreach (var name in (string[])["vm", "link", "hard"])
        {
            foreach (var format in ImageWriting.Formats)
                Assert.Equal(GuestMemoryError.TargetIsMapped, Assert.Throws<GuestMemoryException>(() => ImageWriting.Write(format, memory, _folder[name], overwrite: true)).Error);
            Assert.Equal(GuestMemoryError.TargetIsMapped, Assert.Throws<GuestMemoryException>(() => RawImage.WriteDirty(memory, _folder[name], force: true)).Error);
        }

        Assert.Equal(before, File.ReadAllBytes(_folder["vm"]));
        Assert.Equal(3, Directory.GetFiles(_folder.Path).Length);
    }

    [Theory]
    [InlineData(0b1_111_111_111, true)]
    [InlineData(0b111_111_111, true)]
    [InlineData(0b111_101_101, false)]
    public void ALinkInASharedFolderIsRefused(uint mode, bool isShared)
    {
        Directory.CreateDirectory(_folder["shared"]);
        Assert.Equal(0, FileStatus.TryChangeMode(_folder["shared"], mode));
        RawImage.WriteFull(Memory, _folder["base"], overwrite: false);
        var link = Path.Combine(_folder["shared"], "vm");
        File.CreateSymbolicLink(link, _folder["base"]);
        Memory.Write(new GuestAddress(0x100000), [5]);
        if (isShared)
        {
            Assert.Equal(GuestMemoryError.NotAFile, Assert.Throws<GuestMemoryException>(() => RawImage.WriteFull(Memory, link, overwrite: true)).Error);
            Assert.Equal(GuestMemoryError.NotAFile, Assert.Throws<GuestMemoryException>(() => RawImage.WriteDirty(Memory, link, force: false)).Error);
            File.CreateSymbolicLink(Path.Combine(_folder["shared"], "new.sha256"), _folder["base"]);
            Assert.Equal(GuestMemoryError.NotAFile, Assert.Throws<GuestMemoryException>(() => RawImage.WriteFull(Memory, Path.Combine(_folder["shared"], "new"), overwrite: true, digest: true)).Error);
            Assert.Equal(0, File.ReadAllBytes(_folder["base"])[0]);
        }
        else
        {
            RawImage.WriteDirty(Memory, link, force: false);
            Assert.Equal(5, File.ReadAllBytes(_folder["base"])[0]);
        }
    }

    private static int ModeOf(string path)
    {
        Assert.Equal(0, FileStatus.TryGet(path, out var status));
        return status.stx_mode & 0b111_111_111;
    }

    [System.Runtime.InteropServices.DllImport("libc", EntryPoint = "link", CharSet = System.Runtime.InteropServices.CharSet.Ansi, BestFitMapping = false, ThrowOnUnmappableChar = true)]
    [System.Runtime.InteropServices.DefaultDllImportSearchPaths(System.Runtime.InteropServices.DllImportSearchPath.SafeDirectories)]
    private static extern int HardLink(string from, string to);
}
