namespace GuestMemory.Core.Tests;

/// <summary>The vectors of vm-memory.md 16.16.</summary>
public sealed class AtomicBitmapVectorTests
{
    private static readonly ulong[] s_offsets = [0, 128, 256, 384];

    [Theory]
    [InlineData(1025, 9)]
    [InlineData(1024, 8)]
    public void V16_16_PagesAreRoundedUp(ulong bytes, long pages) => Assert.Equal(pages, new AtomicBitmap(bytes, 128).PageCount);

    [Fact]
    public void V16_16_SetMarksThePagesThatAreTouched() => Assert.Equal([false, true, true, false], Dirty(Marked()));

    [Fact]
    public void V16_16_ACloneHasTheSameBitsAndItsOwn()
    {
        var bitmap = Marked();
        var clone = bitmap.Clone();
        Assert.Equal([false, true, true, false], Dirty(clone));
        Assert.Equal((bitmap.ByteSize, bitmap.PageSize, bitmap.PageCount), (clone.ByteSize, clone.PageSize, clone.PageCount));
        bitmap.Reset();
        Assert.Equal([false, true, true, false], Dirty(clone));
    }

    [Fact]
    public void V16_16_ResetClearsAll()
    {
        var bitmap = Marked();
        bitmap.Reset();
        Assert.Equal([false, false, false, false], Dirty(bitmap));
    }

    [Fact]
    public void V16_16_GetAndResetTakesTheBits()
    {
        var bitmap = Marked();
        Assert.Equal([0b110UL], bitmap.GetAndReset());
        Assert.Equal([false, false, false, false], Dirty(bitmap));
        Assert.False(bitmap.Any());
        bitmap.Merge([0b110UL]);
        Assert.Equal([false, true, true, false], Dirty(bitmap));
    }

    [Fact]
    public void V16_16_ResetRangeClearsThePagesThatAreTouched()
    {
        var bitmap = Marked();
        bitmap.ResetRange(128, 129);
        Assert.Equal([false, false, false, false], Dirty(bitmap));
    }

    [Fact]
    public void V16_16_ARangeEndsWithTheBitmap()
    {
        var bitmap = new AtomicBitmap(1024, 1);
        bitmap.MarkDirty(768, 512);
        Assert.True(bitmap.IsDirtyAt(768));
        Assert.False(bitmap.IsDirtyAt(1024));
        Assert.False(bitmap.IsDirtyAt(1152));
        Assert.Equal(256, bitmap.CountDirty());
    }

    [Fact]
    public void V16_16_EnlargeKeepsTheBits()
    {
        var bitmap = new AtomicBitmap(8 << 10, 128);
        Assert.Equal(64, bitmap.PageCount);
        bitmap.SetBit(3);
        bitmap.SetBit(63);
        bitmap.Enlarge(8 << 10);
        Assert.Equal((128L, 16UL << 10), (bitmap.PageCount, bitmap.ByteSize));
        Assert.True(bitmap.IsBitSet(3));
        Assert.True(bitmap.IsBitSet(63));
        for (var page = 64; page < 128; page++) Assert.False(bitmap.IsBitSet(page));
        bitmap.SetBit(55);
        for (var page = 65; page < 128; page++) bitmap.SetBit(page);
        for (var page = 65; page < 128; page++) Assert.True(bitmap.IsBitSet(page));
        Assert.True(bitmap.IsBitSet(55));
        Assert.Equal(66, bitmap.CountDirty());
        bitmap.ResetRange(0, 16384);
        for (var page = 0; page < 128; page++) Assert.False(bitmap.IsBitSet(page));
    }

    [Theory]
    [InlineData(128)]
    [InlineData(1)]
    public void V16_16_MarksShowThroughASlice(ulong page)
    {
        IBitmap bitmap = new AtomicBitmap(0x800, page);
        bitmap.MarkDirty(0x400, 0x100);
        var slice = bitmap.SliceAt(0x400);
        for (ulong offset = 0; offset < 0x100; offset++) Assert.True(slice.IsDirtyAt(offset));
        Assert.False(slice.IsDirtyAt(0x100));
        Assert.False(bitmap.IsDirtyAt(0x3ff));
    }

    private static AtomicBitmap Marked()
    {
        var bitmap = new AtomicBitmap(1024, 128);
        Assert.Equal([false, false, false, false], Dirty(bitmap));
        bitmap.MarkDirty(128, 129);
        return bitmap;
    }

    private static bool[] Dirty(AtomicBitmap bitmap) => [.. s_offsets.Select(bitmap.IsDirtyAt)];
}
