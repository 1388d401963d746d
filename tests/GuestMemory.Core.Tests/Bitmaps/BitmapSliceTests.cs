namespace GuestMemory.Core.Tests;

public sealed class BitmapSliceTests
{
    [Fact]
    public void WithoutABitmapNothingIsTracked()
    {
        BitmapSlice slice = default;
        slice.MarkDirty(0, ulong.MaxValue);
        Assert.False(slice.IsDirtyAt(0));
        Assert.False(slice.SliceAt(5).IsDirtyAt(0));
    }

    [Fact]
    public void OriginsAddUpAndWrapAround()
    {
        var bitmap = new AtomicBitmap(1000, 10);
        var slice = bitmap.SliceAt(100).SliceAt(50);
        Assert.Equal(150UL, slice.BaseOffset);
        slice.MarkDirty(5, 10);
        Assert.Equal([15L, 16L], Pages(bitmap));
        slice.SliceAt(unchecked(0 - 100UL)).MarkDirty(0, 1);
        Assert.True(bitmap.IsBitSet(5));
        Assert.True(slice.IsDirtyAt(unchecked(0 - 100UL)));
        slice.MarkDirty(unchecked(0 - 150UL), 1);
        Assert.True(bitmap.IsBitSet(0));
        Assert.Equal(bitmap.SliceAt(0), new BitmapSlice(bitmap));
    }

    [Fact]
    public void AnyBitmapCanLieUnderASlice()
    {
        var bitmap = new AtomicBitmap(1000, 10);
        IBitmap outer = bitmap.SliceAt(100);
        var slice = new BitmapSlice(outer, 50);
        slice.MarkDirty(0, 1);
        Assert.True(slice.IsDirtyAt(9));
        Assert.Equal([15L], Pages(bitmap));
    }

    private static long[] Pages(AtomicBitmap bitmap)
    {
        var pages = new long[bitmap.PageCount];
        return pages[..bitmap.ListPages(pages)];
    }
}
