using System.Security.Cryptography;

namespace GuestMemory.Core.Tests;

public sealed class RawImageTests : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRegions(
    [
        new GuestRegionMmap(new MmapRegionBuilder(0x2000).WithDirtyTracking().Build(), new GuestAddress(0), "low"),
        new GuestRegionMmap(new MmapRegionBuilder(0x300000).WithDirtyTracking().Build(), new GuestAddress(0x1000000), "high"),
    ]);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void FullImageIsTheDenseConcatenationWithHoles()
    {
        _memory.Write(new GuestAddress(0x1000), [1]);
        _memory.Write(new GuestAddress(0x1000000), [2]);
        _memory.Write(new GuestAddress(0x12ff000), [3]);
        var info = RawImage.WriteFull(_memory, _folder["image"], overwrite: false, digest: true);
        var bytes = File.ReadAllBytes(_folder["image"]);
        Assert.Equal(0x302000, bytes.Length);
        Assert.Equal((1, 2, 3), (bytes[0x1000], bytes[0x2000], bytes[0x301000]));
        Assert.Equal(3, bytes.Count(value => value != 0));
        Assert.Equal((3L, 0x3000UL), (info.PageCount, info.BytesWritten));
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(bytes)), info.Digest);
        using (var file = File.OpenHandle(_folder["image"])) Assert.Equal(3 * 4096UL, FileStatus.Get(file).stx_blocks * 512);
        Assert.Equal(3, _memory.Regions.Sum(region => region.GetDirtyBitmap().DirtyCount));
    }

    [Fact]
    public void AFileThatIsThereStaysUnlessItMayBeReplaced()
    {
        File.WriteAllText(_folder["image"], "mine");
        Assert.Equal(GuestMemoryError.FileExists, Assert.Throws<GuestMemoryException>(() => RawImage.WriteFull(_memory, _folder["image"], overwrite: false)).Error);
        Assert.Equal("mine", File.ReadAllText(_folder["image"]));
        RawImage.WriteFull(_memory, _folder["image"], overwrite: true);
        Assert.Equal(0x302000, new FileInfo(_folder["image"]).Length);
        Assert.Single(Directory.GetFiles(_folder.Path));
    }

    [Fact]
    public void ADiffOnItsOwnHoldsOnlyTheDirtyPages()
    {
        _memory.Write(new GuestAddress(0x1800), new byte[0x800]);
        _memory.Write(new GuestAddress(0x1001fff), [9, 9]);
        var info = RawImage.WriteDirty(_memory, _folder["diff"], force: false);
        Assert.Equal((ImageFormat.Diff, 3L, 0x302000UL), (info.Format, info.PageCount, info.Size));
        var bytes = File.ReadAllBytes(_folder["diff"]);
        Assert.Equal((9, 9), (bytes[0x3fff], bytes[0x4000]));
        using (var file = File.OpenHandle(_folder["diff"])) Assert.Equal(3 * 4096UL, FileStatus.Get(file).stx_blocks * 512);
        Assert.Equal(0, _memory.Regions.Sum(region => region.GetDirtyBitmap().DirtyCount));
    }

    [Fact]
    public void ALongRunOfDirtyPagesIsWrittenWhole()
    {
        var content = RandomNumberGenerator.GetBytes(0x300000);
        _memory.Write(new GuestAddress(0x1000000), content);
        Assert.Equal(0x300, RawImage.WriteDirty(_memory, _folder["diff"], force: false).PageCount);
        Assert.True(content.AsSpan().SequenceEqual(File.ReadAllBytes(_folder["diff"]).AsSpan(0x2000)));
    }

    [Fact]
    public void ADiffIsPatchedIntoItsBase()
    {
        RawImage.WriteFull(_memory, _folder["base"], overwrite: false);
        using (var file = File.OpenWrite(_folder["base"])) file.Write([7, 7, 7]);
        _memory.Write(new GuestAddress(0x1000), [5]);
        RawImage.WriteDirty(_memory, _folder["base"], force: false, keepDirty: true);
        var bytes = File.ReadAllBytes(_folder["base"]);
        Assert.Equal((7, 5), (bytes[2], bytes[0x1000]));
        Assert.Equal(1, _memory.Regions[0].GetDirtyBitmap().DirtyCount);
    }

    [Fact]
    public void ABaseBehindALinkIsPatchedWhereItIs()
    {
        RawImage.WriteFull(_memory, _folder["base"], overwrite: false);
        File.CreateSymbolicLink(_folder["link"], _folder["base"]);
        _memory.Write(new GuestAddress(0), [5]);
        Assert.Equal(_folder["base"], RawImage.WriteDirty(_memory, _folder["link"], force: false).Path);
        Assert.Equal(5, File.ReadAllBytes(_folder["base"])[0]);
        Assert.NotNull(new FileInfo(_folder["link"]).LinkTarget);
    }

    [Fact]
    public void ARangeIsWrittenByItself()
    {
        _memory.Write(new GuestAddress(0x1001234), [1, 2, 3]);
        RawImage.WriteRange(_memory, new GuestAddress(0x1001235), 0x2001, _folder["range"], overwrite: false);
        var bytes = File.ReadAllBytes(_folder["range"]);
        Assert.Equal((0x2001, 2, 3, 0), (bytes.Length, bytes[0], bytes[1], bytes[2]));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Assert.Throws<GuestMemoryException>(() => RawImage.WriteRange(_memory, new GuestAddress(0x1000), 0x2000, _folder["hole"], overwrite: false)).Error);
        Assert.False(File.Exists(_folder["hole"]));
    }

    [Fact]
    public void ABaseOfAnotherSizeIsRefusedAndTheMarksStay()
    {
        File.WriteAllText(_folder["base"], "another VM's");
        _memory.Write(new GuestAddress(0), [1]);
        Assert.Equal(GuestMemoryError.BaseSizeMismatch, Assert.Throws<GuestMemoryException>(() => RawImage.WriteDirty(_memory, _folder["base"], force: false)).Error);
        Assert.Equal("another VM's", File.ReadAllText(_folder["base"]));
        Assert.Equal(1, _memory.Regions[0].GetDirtyBitmap().DirtyCount);
    }

    [Fact]
    public void MarksComeBackWhenWritingFails()
    {
        _memory.Write(new GuestAddress(0), [1]);
        Assert.ThrowsAny<IOException>(() => RawImage.WriteDirty(_memory, _folder["no/such/folder/diff"], force: false));
        Assert.Equal(1, _memory.Regions[0].GetDirtyBitmap().DirtyCount);
    }

    [Fact]
    public void ACancelledExportLeavesNothing()
    {
        using var cancellation = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => RawImage.WriteFull(_memory, _folder["image"], overwrite: false, progress: _ => cancellation.Cancel(), cancellation: cancellation.Token));
        Assert.Empty(Directory.GetFiles(_folder.Path));
    }
}
