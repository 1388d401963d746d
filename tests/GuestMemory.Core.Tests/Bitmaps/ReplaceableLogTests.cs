using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>vhost-user-log.md: the vectors of section 6 that concern the log, by number.</summary>
public sealed class ReplaceableLogTests : IDisposable
{
    private const ulong Page = 0x1000;
    private readonly TestFolder _folder = new();
    private readonly List<SafeFileHandle> _files = [];

    public void Dispose()
    {
        foreach (var file in _files) file.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void V6_1_TheLogMustReachToTheLastPage()
    {
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => Bitmap(0, 16 * Page, Log(1).Log)));
        Bitmap(0, 8 * Page, Log(1).Log);
    }

    [Theory]
    [InlineData(32, "FFFFFFFF")]
    [InlineData(16, "FFFF0000")]
    [InlineData(6, "3F000000")]
    public void V6_2_To_6_4_MarkingAll(ulong pages, string expected)
    {
        var (log, file) = Log(4);
        var bitmap = Bitmap(0, pages * Page, log);
        Assert.False(bitmap.IsDirtyAt(0));
        bitmap.MarkDirty(0, pages * Page);
        for (ulong page = 0; page < pages; page++) Assert.True(bitmap.IsDirtyAt(page * Page));
        Assert.Equal(expected, Bytes(file));
    }

    [Fact]
    public void V6_5_TwoRegionsShareALog()
    {
        var (log, file) = Log(4);
        var (a, b) = (Bitmap(0, 11 * Page, log), Bitmap(0xE000, Page, log));
        a.MarkDirty(0, 11 * Page);
        Assert.Equal(("FF070000", false), (Bytes(file), b.IsDirtyAt(0)));
        (log, file) = Log(4);
        (a, b) = (Bitmap(0, 11 * Page, log), Bitmap(0xE000, Page, log));
        b.MarkDirty(0, Page);
        Assert.Equal("00400000", Bytes(file));
        for (ulong page = 0; page < 11; page++) Assert.False(a.IsDirtyAt(page * Page));
    }

    [Fact]
    public void V6_6_Slices()
    {
        var (log, file) = Log(4);
        var region = new BitmapMmapRegion();
        region.Replace(Bitmap(0, 32 * Page, log));
        region.SliceAt(0x8000).SliceAt(0x8000).MarkDirty(0, 0x10000);
        Assert.Equal((false, true), (region.IsDirtyAt(0xffff), region.IsDirtyAt(0x10000)));
        Assert.Equal("0000FFFF", Bytes(file));
    }

    [Theory]
    [InlineData(0xFFF, 2, "03000000")]
    [InlineData(0x5000, 0, "00000000")]
    [InlineData(0x1F000, ulong.MaxValue, "00000080")]
    [InlineData(0x20000, 1, "00000000")]
    [InlineData(ulong.MaxValue, ulong.MaxValue, "00000000")]
    public void V6_7_Ranges(ulong offset, ulong length, string expected)
    {
        var (log, file) = Log(4);
        Bitmap(0, 32 * Page, log).MarkDirty(offset, length);
        Assert.Equal(expected, Bytes(file));
    }

    [Theory]
    [InlineData(0x3000, 0x2000, 0x1000, true, "10")]
    [InlineData(0x3000, 0x2000, 0x1000, false, "10")]
    [InlineData(0, 0x1800, 0x1000, true, "00")]
    [InlineData(0, 0x1800, 0x1000, false, "02")]
    [InlineData(0x1800, 0x1000, 0x900, true, "02")]
    [InlineData(0x1800, 0x1000, 0x900, false, "04")]
    [InlineData(0x1000, 0x800, 0, true, "00")]
    [InlineData(0x1000, 0x800, 0, false, "02")]
    public void V6_7_StrictAndCorrected(ulong start, ulong size, ulong offset, bool strict, string expected)
    {
        var (log, file) = Log(1);
        var bitmap = new AtomicBitmapMmap(new GuestAddress(start), size, log, strict);
        bitmap.MarkDirty(offset, 1);
        Assert.Equal(expected, Bytes(file));
        Assert.Equal(expected != "00", bitmap.IsDirtyAt(offset));
    }

    [Fact]
    public void V6_8_LogsComeAndGo()
    {
        var region = new BitmapMmapRegion();
        var slice = region.SliceAt(Page);
        slice.MarkDirty(0, 1);
        Assert.False(slice.IsDirtyAt(0));
        var (first, firstFile) = Log(1);
        region.Replace(Bitmap(0, 8 * Page, first));
        Assert.False(slice.IsDirtyAt(0));
        slice.MarkDirty(0, 1);
        Assert.Equal((true, "02"), (region.IsDirtyAt(Page), Bytes(firstFile)));
        var (second, secondFile) = Log(1);
        region.Replace(Bitmap(0, 8 * Page, second));
        Assert.False(slice.IsDirtyAt(0));
        slice.MarkDirty(Page, 1);
        Assert.Equal(("02", "04"), (Bytes(firstFile), Bytes(secondFile)));
        var far = region.SliceAt(ulong.MaxValue).SliceAt(ulong.MaxValue);
        far.MarkDirty(1, 1);
        Assert.False(far.IsDirtyAt(ulong.MaxValue));
        Assert.Equal("04", Bytes(secondFile));
    }

    [Fact]
    public void V6_9_Construction()
    {
        var (log, _) = Log(2);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => Bitmap(0, 0, log)));
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => Bitmap(ulong.MaxValue, 2, log)));
        Bitmap(15 * Page, Page, log);
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => Bitmap(16 * Page, 1, log)));
        var file = LogFile(8192);
        Assert.Equal(GuestMemoryError.ZeroSize, Failure(() => MmapLogReg.FromFile(file, 0, 0)));
        Assert.Equal(GuestMemoryError.UnalignedOffset, Failure(() => MmapLogReg.FromFile(file, 1, 1)));
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => MmapLogReg.FromFile(file, 4096, 4097)));
        Assert.Equal(GuestMemoryError.InvalidLog, Failure(() => MmapLogReg.FromFile(file, ulong.MaxValue, 1)));
        var tail = MmapLogReg.FromFile(file, 4096, 4096);
        Assert.Equal((4096UL, false), (tail.Length, tail.IsSealed));
        using var memfd = Memfd.CreateSealed("vhost-log", 8192, 0);
        Assert.True(MmapLogReg.FromFile(memfd, 0, 8192).IsSealed);
    }

    [Fact]
    public void V2_3_CloneSharesTheTrackerAndCopiesTheBase()
    {
        var region = BitmapMmapRegion.WithLength(0x123456);
        Assert.Null(region.Tracker);
        var clone = region.SliceAt(Page).Clone();
        clone.MarkDirty(0, 1);
        Assert.False(clone.IsDirtyAt(0));
        var (log, file) = Log(1);
        Install(clone, Bitmap(0, 8 * Page, log));
        clone.MarkDirty(Page, 1);
        Assert.Equal(("04", true), (Bytes(file), region.IsDirtyAt(2 * Page)));
        Install(region, null);
        Assert.False(clone.IsDirtyAt(Page));

        // As a backend that knows the contract alone.
        static void Install(IBitmapReplace<AtomicBitmapMmap> bitmap, AtomicBitmapMmap? inner) => bitmap.Replace(inner);
    }

    [Fact]
    public void BitmapsAreMadeByTheirContract()
    {
        Assert.Equal(3 * HostPage.Size, Make<AtomicBitmap>(3 * HostPage.Size).ByteSize);
        Assert.Null(Make<BitmapMmapRegion>(3 * HostPage.Size).Tracker);

        static TBitmap Make<TBitmap>(ulong size)
            where TBitmap : INewBitmap<TBitmap> => TBitmap.WithLength(size);
    }

    /// <summary>
    /// Eight threads mark, two collect, one replaces logs, which are released at once, and collections are forced: no mark is lost,
    /// nothing unmapped is touched.
    /// </summary>
    [Fact]
    public void V6_11_NoMarkIsLostWhileLogsAreReplaced()
    {
        const int Pages = 4096, Markers = 8, Marks = 1_000_000;
        var region = new BitmapMmapRegion();
        using var memory = new MemoryLogs(_folder, Pages / 8);
        memory.InstallNext(region, Pages);
        var expected = new bool[Pages];
        var running = Markers;
        var markers = Enumerable.Range(0, Markers).Select(seed => new Thread(() =>
        {
            var random = new Random(seed);
            for (var i = 0; i < Marks; i++)
            {
                var page = random.Next(Pages);
                region.MarkDirty((ulong)page * Page, 1);
                Volatile.Write(ref expected[page], true);
            }

            Interlocked.Decrement(ref running);
        })).ToArray();
        var collectors = Enumerable.Range(0, 2).Select(_ => new Thread(() =>
        {
            while (Volatile.Read(ref running) > 0) memory.Collect();
        })).ToArray();
        foreach (var thread in markers.Concat(collectors)) thread.Start();
        for (var i = 0; Volatile.Read(ref running) > 0 || i < 100; i++)
        {
            memory.InstallNext(region, Pages);
            if (i % 8 == 0) GC.Collect();
        }

        foreach (var thread in markers.Concat(collectors)) thread.Join();
        memory.Collect();
        Assert.Equal(expected, memory.Collected(Pages));

        // Of all the logs that were installed only the last one is mapped, beside the views.
        Assert.Equal(MemoryLogs.Count + 1, Mappings());
        region.Replace(null);
        Assert.Equal(MemoryLogs.Count, Mappings());
    }

    private int Mappings() => File.ReadLines("/proc/self/maps").Count(line => line.Contains(_folder["shared"], StringComparison.Ordinal));

    private static GuestMemoryError Failure(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    private static AtomicBitmapMmap Bitmap(ulong start, ulong size, MmapLogReg log) => new(new GuestAddress(start), size, log, strict: true);

    private static string Bytes(SafeFileHandle file)
    {
        var bytes = new byte[RandomAccess.GetLength(file)];
        RandomAccess.Read(file, bytes, 0);
        return Convert.ToHexString(bytes);
    }

    private SafeFileHandle LogFile(long length)
    {
        var file = File.OpenHandle(_folder[$"log{_files.Count}"], FileMode.CreateNew, FileAccess.ReadWrite);
        RandomAccess.SetLength(file, length);
        _files.Add(file);
        return file;
    }

    private (MmapLogReg Log, SafeFileHandle File) Log(long length)
    {
        var file = LogFile(length);
        return (MmapLogReg.FromFile(file, 0, (ulong)length), file);
    }

    /// <summary>A front end's part: a few logs that are put in in turn, and collected by exchanging their words with 0.</summary>
    private sealed unsafe class MemoryLogs : IDisposable
    {
        public const int Count = 4;
        private readonly SafeFileHandle[] _files;
        private readonly MmapLogReg[] _views;
        private readonly long[] _shadow;
        private int _next;

        public MemoryLogs(TestFolder folder, int bytes)
        {
            _files = [.. Enumerable.Range(0, Count).Select(i => File.OpenHandle(folder[$"shared{i}"], FileMode.CreateNew, FileAccess.ReadWrite))];
            foreach (var file in _files) RandomAccess.SetLength(file, bytes);
            _views = [.. _files.Select(file => MmapLogReg.FromFile(file, 0, (ulong)bytes))];
            _shadow = new long[bytes / 8];
        }

        /// <summary>Installs the next log, in a mapping of its own that goes when it is replaced.</summary>
        public void InstallNext(BitmapMmapRegion region, int pages)
        {
            using var log = MmapLogReg.FromFile(_files[_next++ % Count], 0, (ulong)pages / 8);
            region.Replace(new AtomicBitmapMmap(new GuestAddress(0), (ulong)pages * Page, log));
        }

        public void Collect()
        {
            foreach (var view in _views)
            {
                for (var i = 0; i < _shadow.Length; i++)
                {
                    var bits = Interlocked.Exchange(ref *(long*)(view.Words + i), 0);
                    if (bits != 0) Interlocked.Or(ref _shadow[i], bits);
                }

                GC.KeepAlive(view);
            }
        }

        public bool[] Collected(int pages) => [.. Enumerable.Range(0, pages).Select(page => (_shadow[page / 64] >> (page % 64) & 1) != 0)];

        public void Dispose()
        {
            foreach (var view in _views) view.Dispose();
            foreach (var file in _files) file.Dispose();
        }
    }
}
