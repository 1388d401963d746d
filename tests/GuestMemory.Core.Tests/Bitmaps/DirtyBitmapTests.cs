namespace GuestMemory.Core.Tests;

/// <summary>What a query returns: as sets of pages, and in files.</summary>
public sealed class DirtyBitmapTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void SetsOfPages()
    {
        var (left, right) = (Of(0x1000, 70, 0, 1, 64, 69), Of(0x1000, 70, 1, 2, 69));
        Assert.Equal([1L, 69], Pages(left.And(right)));
        Assert.Equal([0L, 1, 2, 64, 69], Pages(left.Or(right)));
        Assert.Equal([0L, 64], Pages(left.Except(right)));
        Assert.Equal((0x1000UL, 70L, "a except a"), (left.Except(right).StartAddress, left.Except(right).PageCount, left.Except(right).Source));
    }

    [Fact]
    public void SetsNeedTheSameMemory()
    {
        var bitmap = Of(0x1000, 70, 1);
        foreach (var other in new[] { Of(0x2000, 70, 1), Of(0x1000, 71, 1), new DirtyBitmap(0x1000, 70 * 4096, 8192, new ulong[1], "a") })
        {
            Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => bitmap.And(other)).Error);
            Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => other.Or(bitmap)).Error);
            Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => other.Except(bitmap)).Error);
        }
    }

    [Fact]
    public void PagesAtOtherAddresses()
    {
        var bitmap = Of(0x1000, 70, 0, 64);
        foreach (var (bytes, start) in new (long Bytes, ulong Start)[] { (0, 0x1000), (-0x1000, 0), (0x7000, 0x8000), (0x123, 0x1123), (long.MaxValue, 0x8000000000000fff) })
        {
            var moved = bitmap.Shift(bytes);
            Assert.Equal((start, bitmap.ByteSize, bitmap.Source), (moved.StartAddress, moved.ByteSize, moved.Source));
            Assert.Equal([0L, 64], Pages(moved));
            Assert.Equal(bitmap.GetRanges().Select(range => unchecked(range.Address + (ulong)bytes)), moved.GetRanges().Select(static range => range.Address));
        }

        // Its last byte may be the last one that there is.
        Assert.Equal(ulong.MaxValue - 0x45fff, Of(0x7ffffffffffba000, 70, 1).Shift(0x4000000000000000).Shift(0x4000000000000000).StartAddress);
        foreach (var (of, bytes) in new[] { (bitmap, -0x1001L), (Of(0x7ffffffffffba001, 70, 1).Shift(0x4000000000000000), 0x4000000000000000), (bitmap, long.MinValue) })
            Assert.Equal(GuestMemoryError.GuestAddressOverflow, Assert.Throws<GuestMemoryException>(() => of.Shift(bytes)).Error);
    }

    [Fact]
    public void HowManyOfThePages()
    {
        Assert.Equal(0.05, Of(0, 60, 1, 2, 3).Density);
        Assert.Equal(0, new DirtyBitmap(0, 0, 4096, [], "a").Density);
    }

    [Fact]
    public void SavedAsALog()
    {
        Of(0xE000, 12, 0, 3, 11).Save(_folder["log"]);
        Assert.Equal("00400202", Convert.ToHexString(File.ReadAllBytes(_folder["log"])));
        Assert.Throws<IOException>(() => Of(0, 1, 0).Save(_folder["log"]));
        var loaded = DirtyBitmap.Load(_folder["log"]);
        Assert.Equal((0UL, 4096UL, $"log {_folder["log"]}"), (loaded.StartAddress, loaded.PageSize, loaded.Source));
        Assert.Equal([14L, 17, 25], Pages(loaded));
        Assert.Equal([0L, 3, 11], Pages(loaded.Slice(0xE000, 12 * 4096)));
    }

    [Fact]
    public void SavedAndLoadedItIsTheSame()
    {
        var random = new Random(1);
        for (var round = 0; round < 300; round++)
        {
            var (first, count) = (random.Next(65536), random.Next(1, 500));
            var bitmap = Of((ulong)first * 4096, count, [.. Enumerable.Range(0, count).Where(_ => random.Next(round % 7 + 1) == 0)]);
            var path = _folder[$"log{round}"];
            bitmap.Save(path);
            Assert.Equal((first + count - 1) / 8 + 1, new FileInfo(path).Length);
            var again = DirtyBitmap.Load(path).Slice(bitmap.StartAddress, bitmap.ByteSize);
            Assert.Equal(bitmap.AsWords(), again.AsWords());
            Assert.Equal((bitmap.StartAddress, bitmap.PageCount), (again.StartAddress, again.PageCount));
        }
    }

    [Fact]
    public void APartOfALog()
    {
        File.WriteAllBytes(_folder["log"], [.. new byte[4096], 0xFF, 0xFF]);
        Assert.Equal((32768UL, 8L), (DirtyBitmap.Load(_folder["log"], 4096, 1).ByteSize, DirtyBitmap.Load(_folder["log"], 4096, 1).DirtyCount));
        Assert.Equal(16, DirtyBitmap.Load(_folder["log"], 4096).DirtyCount);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmap.Load(_folder["log"], 4096, 3)));
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmap.Load(_folder["log"], 8192)));
        Assert.Equal(GuestMemoryError.ZeroSize, Failure(() => DirtyBitmap.Load(_folder["log"], 0, 0)));
        File.WriteAllBytes(_folder["empty"], []);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmap.Load(_folder["empty"])));
        using (var file = File.OpenHandle(_folder["image"], FileMode.CreateNew, FileAccess.Write)) RandomAccess.SetLength(file, 1L << 31);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => DirtyBitmap.Load(_folder["image"])));
    }

    [Fact]
    public void ARegionThatIsNotAlignedToPages()
    {
        var log = MmapLogReg.FromMemfd(1);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x1800).WithTracker(new AtomicBitmapMmap(new GuestAddress(0x1800), 0x1800, log)).Build(), new GuestAddress(0x1800));
        GuestMemoryMmap.FromRegions([region]).Write(new GuestAddress(0x1FFF), [1, 2]);
        var bitmap = region.GetDirtyBitmap();
        Assert.Equal([new AddressRange(0x1800, 0x1800, 2)], bitmap.GetRanges());
        var part = DirtyBitmap.Load(log.Path).Slice(region.GuestAddress, region.Size);
        Assert.Equal([new AddressRange(0x1800, 0x1800, 2)], part.GetRanges());
        Assert.Equal([new AddressRange(0x1800, 0x1800, 2)], part.And(bitmap).GetRanges());
        Assert.Equal([new AddressRange(0x1800, 0x1800, 2)], bitmap.Slice(bitmap.StartAddress, bitmap.ByteSize).GetRanges());
        Assert.Equal([new AddressRange(0x2100, 0x200, 1)], bitmap.Slice(0x2100, 0x200).GetRanges());
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure(() => bitmap.Slice(0x2000, 0x2000)));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure(() => bitmap.Slice(0, 0x2000)));
        bitmap.Save(_folder["log"]);
        Assert.Equal([0x06], File.ReadAllBytes(_folder["log"]));
    }

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    private static DirtyBitmap Of(ulong start, int pages, params int[] dirty)
    {
        var words = new ulong[(pages + 63) / 64];
        foreach (var page in dirty) words[page / 64] |= 1UL << (page % 64);
        return new DirtyBitmap(start, (ulong)pages * 4096, 4096, words, "a");
    }

    private static long[] Pages(DirtyBitmap bitmap) => [.. Enumerable.Range(0, (int)bitmap.PageCount).Where(page => bitmap.IsDirty(page)).Select(page => (long)page)];
}
