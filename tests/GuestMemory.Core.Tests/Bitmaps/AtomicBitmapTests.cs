namespace GuestMemory.Core.Tests;

public sealed class AtomicBitmapTests
{
    [Theory]
    [InlineData(1025, 128, 9)]
    [InlineData(1024, 128, 8)]
    [InlineData(0, 4096, 0)]
    [InlineData(1000, 3, 334)]
    public void PagesAreCountedUpwards(ulong bytes, ulong page, long pages) => Assert.Equal(pages, new AtomicBitmap(bytes, page).PageCount);

    /// <summary>vm-memory.md 16.16: page 128, set(128, 129).</summary>
    [Fact]
    public void V16_16_MarkAndTake()
    {
        var bitmap = new AtomicBitmap(1024, 128);
        bitmap.MarkDirty(128, 129);
        Assert.Equal((false, true, true, false), (bitmap.IsDirtyAt(0), bitmap.IsDirtyAt(128), bitmap.IsDirtyAt(256), bitmap.IsDirtyAt(384)));
        Assert.Equal([0b110UL], bitmap.GetAndReset());
        Assert.Equal(0, bitmap.CountDirty());
        bitmap.Merge([0b110UL]);
        Assert.Equal(2, bitmap.CountDirty());
    }

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

    [Fact]
    public void NoMarkIsLostWhileTaking()
    {
        const int Pages = 1 << 16;
        var bitmap = new AtomicBitmap(Pages * 4096UL, 4096);
        var collected = new ulong[Pages / 64];
        var marked = new ulong[2][];
        var running = 2;
        var markers = Enumerable.Range(0, 2).Select(seed => new Thread(() =>
        {
            var random = new Random(seed);
            var mine = marked[seed] = new ulong[Pages / 64];
            for (var i = 0; i < 400_000; i++)
            {
                var page = random.Next(Pages);
                bitmap.MarkDirty((ulong)page * 4096, 1);
                mine[page >> 6] |= 1UL << (page & 63);
            }

            Interlocked.Decrement(ref running);
        })).ToArray();
        foreach (var marker in markers) marker.Start();
        void Collect()
        {
            var taken = bitmap.GetAndReset();
            for (var i = 0; i < taken.Length; i++) collected[i] |= taken[i];
        }

        while (Volatile.Read(ref running) > 0) Collect();
        foreach (var marker in markers) marker.Join();
        Collect();
        Assert.Equal(marked[0].Zip(marked[1], (a, b) => a | b), collected);
    }
}
