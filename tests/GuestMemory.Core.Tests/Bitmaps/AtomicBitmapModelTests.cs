namespace GuestMemory.Core.Tests;

/// <summary>Every operation beside a plain array of bools, at random.</summary>
public sealed class AtomicBitmapModelTests
{
    [ModelProperty(1200, typeof(BitmapContent))]
    public void ListsAgree(BitmapContent content)
    {
        var bitmap = new AtomicBitmap((ulong)content.Bits.Length * 3, 3);
        for (var page = 0; page < content.Bits.Length; page++)
        {
            if (content.Bits[page]) bitmap.SetBit(page);
        }

        Check(bitmap, content.Bits, content.From, content.BufferLength);
    }

    [ModelProperty(400, typeof(BitmapHistory))]
    public void OperationsAgree(BitmapHistory history)
    {
        var (page, size) = (history.PageSize, history.Size);
        var bitmap = new AtomicBitmap(size, page);
        var model = new bool[bitmap.PageCount];
        foreach (var step in history.Steps)
        {
            var (offset, length) = (step.OffsetIn(size), step.LengthIn(size, page));
            switch (step.Operation)
            {
                case BitmapHistory.Operation.MarkDirty:
                    bitmap.MarkDirty(offset, length);
                    Fill(model, size, page, offset, length, value: true);
                    break;
                case BitmapHistory.Operation.ResetRange:
                    bitmap.ResetRange(offset, length);
                    Fill(model, size, page, offset, length, value: false);
                    break;
                case BitmapHistory.Operation.SetBit or BitmapHistory.Operation.ResetBit:
                    // From two before the first to one behind the last.
                    var (bit, value) = ((long)(step.Length % (ulong)(model.Length + 4)) - 2, step.Operation == BitmapHistory.Operation.SetBit);
                    if (value) bitmap.SetBit(bit);
                    else bitmap.ResetBit(bit);
                    if (bit >= 0 && bit < model.Length) model[bit] = value;
                    break;
                case BitmapHistory.Operation.Enlarge:
                    var extra = step.Length % (page * 70);
                    bitmap.Enlarge(extra);
                    size += extra;
                    Array.Resize(ref model, (int)((size + page - 1) / page));
                    break;
                case BitmapHistory.Operation.GetAndReset:
                    Assert.Equal(Words(model), bitmap.GetAndReset());
                    model = new bool[model.Length];
                    break;
                case BitmapHistory.Operation.Reset:
                    bitmap.Reset();
                    model = new bool[model.Length];
                    break;
                default:
                    bitmap = bitmap.Clone();
                    break;
            }

            var at = step.Probe % (size + (2 * page));
            Assert.Equal(at < size && model[at / page], bitmap.IsDirtyAt(at));
        }

        Assert.Equal((size, (long)model.Length), (bitmap.ByteSize, bitmap.PageCount));
        Check(bitmap, model, history.From % (model.Length + 100), history.BufferLength);
    }

    [Fact]
    public void TheWholeAddressSpaceCanBeTracked()
    {
        var bitmap = new AtomicBitmap(ulong.MaxValue, 1UL << 50);
        bitmap.MarkDirty(ulong.MaxValue - 1, ulong.MaxValue);
        Assert.Equal((1L << 14, 1L), (bitmap.PageCount, bitmap.CountDirty()));
        Assert.True(bitmap.IsBitSet((1 << 14) - 1));
        Assert.Throws<OverflowException>(() => bitmap.Enlarge(1));
        Assert.Equal(ulong.MaxValue, bitmap.ByteSize);
        var range = Assert.Single(new DirtyBitmap(0, ulong.MaxValue, 1UL << 50, bitmap.Snapshot(), "all").GetRanges());
        Assert.Equal(ulong.MaxValue - 1, range.LastAddress);
    }

    [Fact]
    public void DefaultsAreThoseOfUpstream()
    {
        var empty = new AtomicBitmap();
        Assert.Equal((0UL, 4096UL, 0L, 0), (empty.ByteSize, empty.PageSize, empty.PageCount, empty.WordCount));
        Assert.False(empty.Any());
        Assert.Empty(empty.GetAndReset());
        Assert.Equal((ulong)Environment.SystemPageSize, AtomicBitmap.WithLength(1).PageSize);
    }

    [Fact]
    public void BuffersOfAnotherLengthAreRefused()
    {
        var bitmap = new AtomicBitmap(65, 1);
        Assert.Throws<ArgumentOutOfRangeException>(() => bitmap.GetAndReset(new ulong[1]));
        Assert.Throws<ArgumentOutOfRangeException>(() => bitmap.Snapshot(new ulong[3]));
        Assert.Throws<ArgumentOutOfRangeException>(() => bitmap.Merge(new ulong[1]));
        Assert.Throws<ArgumentOutOfRangeException>(() => bitmap.ListPages(new long[1], -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => bitmap.ListRuns(new PageRun[1], -1));
    }

    private static void Check(AtomicBitmap bitmap, bool[] model, int from, int size)
    {
        var dirty = new DirtyBitmap(0x1000, bitmap.ByteSize, bitmap.PageSize, bitmap.Snapshot(), "model");
        var pages = Enumerable.Range(0, model.Length).Where(page => model[page]).Select(page => (long)page).ToArray();
        Assert.Equal(Words(model), dirty.AsWords().ToArray());
        Assert.Equal((long)pages.Length, bitmap.CountDirty());
        Assert.Equal((long)pages.Length, dirty.DirtyCount);
        Assert.Equal(pages.Length > 0, bitmap.Any());
        Assert.Equal(pages.Where(page => page >= from), Listed(bitmap, from, size));
        var runs = Runs(bitmap, from, size);
        Assert.Equal(pages.Where(page => page >= from), runs.SelectMany(run => Enumerable.Range((int)run.First, (int)run.Count)).Select(page => (long)page));
        Assert.All(runs.Zip(runs.Skip(1)), pair => Assert.True(pair.First.End < pair.Second.First));
        Assert.Equal(Runs(bitmap, 0, size).Select(run => run.Count), dirty.GetRanges().Select(range => range.PageCount));
        Assert.True(dirty.GetRanges().All(range => range.LastAddress < 0x1000 + bitmap.ByteSize));
    }

    /// <summary>All pages, through a buffer of any size; nothing is written behind the buffer.</summary>
    private static List<long> Listed(AtomicBitmap bitmap, long from, int size)
    {
        var all = new List<long>();
        var buffer = new long[size + 1];
        for (int count = size; count == size;)
        {
            buffer[size] = -1;
            count = bitmap.ListPages(buffer.AsSpan(0, size), from);
            Assert.Equal(-1, buffer[size]);
            all.AddRange(buffer.AsSpan(0, count));
            if (count > 0) from = buffer[count - 1] + 1;
        }

        return all;
    }

    private static List<PageRun> Runs(AtomicBitmap bitmap, long from, int size)
    {
        var all = new List<PageRun>();
        var buffer = new PageRun[size + 1];
        for (int count = size; count == size;)
        {
            buffer[size] = new PageRun(-1, -1);
            count = bitmap.ListRuns(buffer.AsSpan(0, size), from);
            Assert.Equal(new PageRun(-1, -1), buffer[size]);
            all.AddRange(buffer.AsSpan(0, count));
            if (count > 0) from = buffer[count - 1].End;
        }

        return all;
    }

    private static void Fill(bool[] model, ulong size, ulong page, ulong offset, ulong length, bool value)
    {
        if (length == 0 || offset >= size) return;
        var last = length > size - offset ? size - 1 : offset + length - 1;
        for (var i = offset / page; i <= last / page; i++) model[i] = value;
    }

    private static ulong[] Words(bool[] model)
    {
        var words = new ulong[(model.Length + 63) / 64];
        for (var page = 0; page < model.Length; page++)
        {
            if (model[page]) words[page >> 6] |= 1UL << (page & 63);
        }

        return words;
    }
}
