using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>Dirty bitmaps in files.</summary>
public sealed class DirtyBitmapFileTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData(0UL, 70 * 4096UL, 4096UL)]
    [InlineData(0x7f2b3ffff000UL, 64 * 4096UL, 4096UL)]
    [InlineData(0x7f2b40000000UL, 5UL << 21, 2UL << 20)]
    [InlineData(0x1800UL, 5000UL, 4096UL)]
    [InlineData(0xfffffffffffff000UL, 4096UL, 4096UL)]
    [InlineData(0x1000UL, 3000UL, 1000UL)]
    [InlineData(0x1000UL, 0UL, 4096UL)]
    public void WhatIsReadIsWhatWasWritten(ulong start, ulong size, ulong pageSize)
    {
        var random = new Random(1);
        var pages = (long)((size + pageSize - 1) / pageSize);
        var words = new ulong[(pages + 63) / 64];
        for (long page = 0; page < pages; page++) words[page / 64] |= (ulong)random.Next(2) << (int)(page % 64);
        var bitmap = new DirtyBitmap(start, size, pageSize, words, "a");
        var path = _folder["bitmap"];
        DirtyBitmapFile.Write(bitmap, path, overwrite: false);
        var again = DirtyBitmapFile.Read(path);
        Assert.Equal((start, size, pageSize, $"file {path}"), (again.StartAddress, again.ByteSize, again.PageSize, again.Source));
        Assert.Equal(bitmap.AsWords(), again.AsWords());
        Assert.Equal(bitmap.GetRanges(), again.GetRanges());
        Assert.Equal((bitmap.DirtyCount, 0L), (again.And(bitmap).DirtyCount, again.Except(bitmap).DirtyCount));
        Assert.Equal(32 + (words.Length * 8), new FileInfo(path).Length);
    }

    [Fact]
    public void AFileThatIsThereStays()
    {
        var path = _folder["bitmap"];
        DirtyBitmapFile.Write(Of(1), path, overwrite: false);
        Assert.Equal(GuestMemoryError.FileExists, Failure(() => DirtyBitmapFile.Write(Of(2), path, overwrite: false)));
        Assert.True(DirtyBitmapFile.Read(path).IsDirty(1));
        DirtyBitmapFile.Write(Of(2), path, overwrite: true);
        Assert.True(DirtyBitmapFile.Read(path).IsDirty(2));
        Assert.Equal([path], Directory.GetFiles(Path.GetDirectoryName(path)!));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => DirtyBitmapFile.Write(Of(2), Path.GetDirectoryName(path)!, overwrite: true)));
        Assert.Equal(GuestMemoryError.NotAFile, Failure(() => DirtyBitmapFile.Read("/dev/null")));
    }

    /// <summary>Whatever a file has: a bitmap, or an error that says what is wrong.</summary>
    [Fact]
    public void ADamagedFileIsRefused()
    {
        var path = _folder["bitmap"];
        DirtyBitmapFile.Write(Of(1), path, overwrite: false);
        var whole = File.ReadAllBytes(path);
        var random = new Random(1);
        for (var round = 0; round < 2000; round++)
        {
            var bytes = whole.ToArray();
            var at = random.Next(bytes.Length);
            bytes[at] ^= (byte)(1 << random.Next(8));
            File.WriteAllBytes(path, bytes);
            try
            {
                _ = DirtyBitmapFile.Read(path).GetRanges().ToArray();
                // Which memory it is about, no checksum says.
                Assert.True(at is (>= 8 and < 20) or (>= 24 and < 32), $"byte {at} may be anything");
            }
            catch (GuestMemoryException exception)
            {
                Assert.Equal(GuestMemoryError.InvalidLog, exception.Error);
            }
        }

        foreach (var bytes in (byte[][])[[], whole[..31], whole[..^1], [.. whole, 0], [.. whole[..^1], 0xff], new byte[40]])
        {
            File.WriteAllBytes(path, bytes);
            Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmapFile.Read(path)));
        }

        // No memory for what the file does not have.
        BinaryPrimitives.WriteUInt64LittleEndian(whole.AsSpan(8), 1UL << 62);
        File.WriteAllBytes(path, whole);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmapFile.Read(path)));
        BinaryPrimitives.WriteUInt32LittleEndian(whole.AsSpan(16), 0);
        File.WriteAllBytes(path, whole);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmapFile.Read(path)));
    }

    /// <summary>The bits beside a diff are such a file.</summary>
    [Fact]
    public void TheBitsOfADiffAreRead()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(70 * HostPage.Size).WithDirtyTracking().Build(), new GuestAddress(0), "ram");
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.Write(new GuestAddress(65 * HostPage.Size), [1]);
        _ = RawImage.WriteDirty(memory, _folder["diff"], force: false);
        var bitmap = DirtyBitmapFile.Read(_folder["diff.dirty"]);
        Assert.Equal((0UL, 70 * HostPage.Size, 1L, true), (bitmap.StartAddress, bitmap.ByteSize, bitmap.DirtyCount, bitmap.IsDirty(65)));
        // One of other memory is not taken for the diff's.
        DirtyBitmapFile.Write(bitmap.Shift(0x100000), _folder["diff.dirty"], overwrite: true);
        Assert.Equal(GuestMemoryError.InvalidImage, Failure(() => DirtySidecar.TryLoad(_folder["diff"], 70 * HostPage.Size)));
    }

    private static DirtyBitmap Of(int page)
    {
        var words = new ulong[1];
        words[0] = 1UL << page;
        return new DirtyBitmap(0x10000, 50 * 4096, 4096, words, "a");
    }

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;
}
