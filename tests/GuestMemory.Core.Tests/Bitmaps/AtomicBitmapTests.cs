namespace GuestMemory.Core.Tests;

public sealed class AtomicBitmapTests
{
    [Theory]
    [InlineData(1025, 128, 9)]
    [InlineData(1024, 128, 8)]
    [InlineData(0, 4096, 0)]
    [InlineData(1000, 3, 334)]
    public void PagesAreCountedUpwards(ulong bytes, ulong page, long pages) => Assert.Equal(pages, new AtomicBitmap(bytes, page).PageCount);

    [Fact]
    public void RangesAgreeWithAPlainModel()
    {
        var random = new Random(5);
        for (var round = 0; round < 2000; round++)
        {
            var size = (ulong)random.Next(1, 3000);
            var page = (ulong)random.Next(1, 20);
            var bitmap = new AtomicBitmap(size, page);
            var model = new bool[bitmap.PageCount];
            for (var i = 0; i < 4; i++)
            {
                var offset = (ulong)random.Next(0, 3200);
                var length = random.Next(10) == 0 ? ulong.MaxValue : (ulong)random.Next(0, 1500);
                bitmap.MarkDirty(offset, length);
                for (var at = offset; at < size && at - offset < length; at++) model[at / page] = true;
            }

            var dirty = new DirtyBitmap(0x1000, size, page, bitmap.Snapshot(), "model");
            Assert.Equal(model.LongCount(set => set), dirty.DirtyCount);
            var fromRanges = new bool[model.Length];
            ulong last = 0;
            foreach (var range in dirty.GetRanges())
            {
                Assert.True(range.Address > last || last == 0);
                last = range.LastAddress;
                for (var i = 0; i < range.PageCount; i++) fromRanges[(int)((range.Address - 0x1000) / page) + i] = true;
            }

            Assert.Equal(model, fromRanges);
            Assert.True(last < 0x1000 + size);
        }
    }
}
