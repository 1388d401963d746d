using System.Runtime.InteropServices;
using GuestMemory.Core;

namespace GuestMemory.Bench;

/// <summary>
/// The bitmap's operations, one figure each: the same loops over data of the same generator as in cbase.c, 64 GiB in pages of 4 KiB.
/// </summary>
internal sealed unsafe class BitmapRows : RowSet
{
    private const ulong Page = 4096;
    private const ulong Range = 2 << 20;
    private const long Pages = 16 << 20;
    private const int Marks = 1 << 20;
    private const int Ranges = 1 << 13;

    private readonly AtomicBitmap _bitmap = new(Pages * Page, Page);
    // Where C has it too, on pages of its own: beside the bitmap in one heap, each of the two slows the other's reads down.
    private readonly uint* _random = (uint*)NativeMemory.AlignedAlloc(Marks * sizeof(uint), (nuint)Page);
    private readonly ulong[] _taken;
    private readonly long[] _list = new long[Pages];
    private readonly PageRun[] _runs = new PageRun[Pages / 2];
    private ulong _seed = 88172645463325252;

    public BitmapRows()
    {
        _taken = new ulong[_bitmap.WordCount];
        for (var i = 0; i < Marks; i++) _random[i] = (uint)(Next() % Pages);
    }

    public override string Name => "bitmaps";

    public override string Setup => "64 GiB in pages of 4 KiB";

    public override string[] Filters => ["bitmap_"];

    public override string Mebibytes => "16";

    public override Row[] Rows { get; } =
    [
        new("mark the page of 4096 bytes, random", "\"bench\":\"bitmap_set_atomic_rand\"", "1.10", Marks),
        new("the same, already dirty", "\"bench\":\"bitmap_set_test_first_rand_already_dirty\"", "1.05", Marks),
        new("mark a page by its number, random", "\"bench\":\"bitmap_set_atomic_rand\"", "1.10", Marks),
        new("the same, already dirty", "\"bench\":\"bitmap_set_test_first_rand_already_dirty\"", "1.05", Marks),
        new("mark a page through a slice, already dirty", "\"bench\":\"bitmap_set_test_first_rand_already_dirty\"", "", Marks),
        new("is a page dirty, random", "\"bench\":\"bitmap_test_rand\"", "", Marks),
        new("mark 2 MiB, random", "\"bench\":\"bitmap_set_2M_range_atomic_words\"", "1.00", Ranges),
        new("get and reset, clean", "\"bench\":\"bitmap_get_and_reset_xchg_if_nonzero\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":0", "0.60", 1),
        new("get and reset, 1 %", "\"bench\":\"bitmap_get_and_reset_xchg_if_nonzero\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", "1.00", 1),
        new("list pages, 1 %", "\"bench\":\"bitmap_list_pages\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", "0.90", 1),
        new("list runs, 1 %", "\"bench\":\"bitmap_list_runs\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", "0.80", 1),
        new("count, 30 %", "\"bench\":\"bitmap_popcount_avx2\"", "1.05", 1),
        new("any, clean", "\"bench\":\"bitmap_any_avx2_clean\"", "", 1),
    ];

    protected override int WarmUps => 35;

    protected override double[] Measure()
    {
        var slice = new BitmapSlice(_bitmap);
        return
        [
            Time(Clear, MarkPages),
            Time(MarkPages, MarkPages),
            Time(Clear, SetPages),
            Time(SetPages, SetPages),
            Time(MarkPages, () => MarkThrough(slice)),
            Time(null, () => TestPages()),
            Time(Clear, MarkRanges),
            Time(Clear, Take),
            Time(() => Fill(1), Take),
            Time(() => Fill(1), () => _bitmap.ListPages(_list)),
            Time(() => Fill(1), () => _bitmap.ListRuns(_runs)),
            Time(() => Fill(30), () => _bitmap.CountDirty(), once: true),
            Time(Clear, () => _bitmap.Any()),
        ];
    }

    private void MarkPages()
    {
        var bitmap = _bitmap;
        foreach (var page in new ReadOnlySpan<uint>(_random, Marks)) bitmap.MarkDirty(page * Page, Page);
    }

    private void SetPages()
    {
        var bitmap = _bitmap;
        foreach (var page in new ReadOnlySpan<uint>(_random, Marks)) bitmap.SetBit(page);
    }

    private void MarkThrough(BitmapSlice slice)
    {
        foreach (var page in new ReadOnlySpan<uint>(_random, Marks)) slice.MarkDirty(page * Page, Page);
    }

    private int TestPages()
    {
        var bitmap = _bitmap;
        var dirty = 0;
        foreach (var page in new ReadOnlySpan<uint>(_random, Marks)) dirty += bitmap.IsDirtyAt(page * Page) ? 1 : 0;
        return dirty;
    }

    private void MarkRanges()
    {
        var bitmap = _bitmap;
        foreach (var page in new ReadOnlySpan<uint>(_random, Ranges)) bitmap.MarkDirty(page * Page & ~(Range - 1), Range);
    }

    private void Take() => _bitmap.GetAndReset(_taken);

    private void Clear()
    {
        _bitmap.SetBit(0);
        _bitmap.Reset();
    }

    private void Fill(int percent)
    {
        Array.Clear(_taken);
        for (var i = 0; i < Pages * percent / 100; i++)
        {
            var page = Next() % Pages;
            _taken[page >> 6] |= 1UL << (int)(page & 63);
        }

        _bitmap.Reset();
        _bitmap.Merge(_taken);
    }

    private ulong Next()
    {
        _seed ^= _seed << 13;
        _seed ^= _seed >> 7;
        _seed ^= _seed << 17;
        return _seed;
    }
}
