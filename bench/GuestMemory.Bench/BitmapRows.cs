using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using GuestMemory.Core;

namespace GuestMemory.Bench;

/// <summary>
/// The bitmap's operations, one figure each: the same loops over data of the same generator as in cbase.c, 64 GiB in pages of 4 KiB.
/// </summary>
internal sealed unsafe class BitmapRows
{
    private const int Repetitions = 5;
    private const int WarmUps = 35;
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

    /// <summary>The rows: what it is, C's name for it, what it may take of C's time, and how often the body does it.</summary>
    public static (string Name, string Baseline, double Target, int Operations)[] Rows { get; } =
    [
        ("mark a page, random", "\"bench\":\"bitmap_set_atomic_rand\"", 1.1, Marks),
        ("the same, already dirty", "\"bench\":\"bitmap_set_test_first_rand_already_dirty\"", 1.05, Marks),
        ("the same, through a slice", "\"bench\":\"bitmap_set_test_first_rand_already_dirty\"", double.NaN, Marks),
        ("is a page dirty, random", "\"bench\":\"bitmap_test_rand\"", double.NaN, Marks),
        ("mark 2 MiB, random", "\"bench\":\"bitmap_set_2M_range_atomic_words\"", 1, Ranges),
        ("get and reset, clean", "\"bench\":\"bitmap_get_and_reset_xchg_if_nonzero\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":0", 0.6, 1),
        ("get and reset, 1 %", "\"bench\":\"bitmap_get_and_reset_xchg_if_nonzero\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", 1, 1),
        ("list pages, 1 %", "\"bench\":\"bitmap_list_pages\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", 0.9, 1),
        ("list runs, 1 %", "\"bench\":\"bitmap_list_runs\",\"span_gib\":64,\"page\":4096,\"dirty_pct\":1,", 0.8, 1),
        ("count, 30 %", "\"bench\":\"bitmap_popcount_avx2\"", 1.05, 1),
        ("any, clean", "\"bench\":\"bitmap_any_avx2_clean\"", double.NaN, 1),
    ];

    /// <summary>Answers every line of input with a line "ns ns ..., bytes", until the input ends.</summary>
    public int Run()
    {
        // What runs first is compiled first, and compiled again when it has run often: none of that is measured.
        for (var round = 0; round < 4; round++)
        {
            for (var i = 0; i < WarmUps; i++) Measure(1);
            Thread.Sleep(300);
        }

        Console.WriteLine("ready");
        while (Console.In.ReadLine() is not null)
        {
            var (times, allocated) = Measure(Repetitions);
            Console.WriteLine(string.Join(' ', times.Select(time => time.ToString("R", CultureInfo.InvariantCulture)).Append($"{allocated}")));
        }

        return 0;
    }

    private (double[] Nanoseconds, long AllocatedBytes) Measure(int repetitions)
    {
        long allocated = 0;
        var slice = new BitmapSlice(_bitmap);
        double[] times =
        [
            Time(Clear, MarkPages),
            Time(MarkPages, MarkPages),
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
        for (var i = 0; i < times.Length; i++) times[i] /= Rows[i].Operations;
        return (times, allocated);

        // As cbase.c does it: one unmeasured repetition, then the median.
        double Time(Action? prepare, Action body, bool once = false)
        {
            var measured = new double[repetitions];
            for (var i = -1; i < repetitions; i++)
            {
                if (i < 0 || !once) prepare?.Invoke();
                var before = GC.GetAllocatedBytesForCurrentThread();
                var start = Stopwatch.GetTimestamp();
                body();
                var ticks = Stopwatch.GetTimestamp() - start;
                if (i < 0) continue;
                allocated += GC.GetAllocatedBytesForCurrentThread() - before;
                measured[i] = ticks * (1e9 / Stopwatch.Frequency);
            }

            return BenchTools.Median(measured);
        }
    }

    private void MarkPages()
    {
        var bitmap = _bitmap;
        foreach (var page in new ReadOnlySpan<uint>(_random, Marks)) bitmap.MarkDirty(page * Page, Page);
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
