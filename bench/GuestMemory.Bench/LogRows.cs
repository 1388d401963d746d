using System.Runtime.InteropServices;
using GuestMemory.Core;

namespace GuestMemory.Bench;

/// <summary>
/// The replaceable log of live migration beside the plain one: random pages of 64 GiB, one thread and two. C is not in it.
/// </summary>
internal sealed unsafe class LogRows : RowSet
{
    private const string Plain = "plain log: mark a page, random, 1 thread";
    private const string Single = "replaceable log: mark a page, random, 1 thread";
    private const ulong Span = 64UL << 30;
    private const int Marks = 1 << 20;

    private readonly AtomicBitmapMmap _log;
    private readonly BitmapMmapRegion _replaceable = new();
    private readonly uint*[] _pages = new uint*[2];
    private readonly Barrier _start = new(2);
    private readonly Barrier _end = new(2);

    public LogRows()
    {
        using var file = File.OpenHandle(Path.Combine("/dev/shm", $"gm-bench-{Guid.NewGuid():N}"), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.ReadWrite, FileOptions.DeleteOnClose);
        var length = MmapLogReg.RequiredLength(new GuestAddress(Span - 1));
        RandomAccess.SetLength(file, (long)length);
        _log = new AtomicBitmapMmap(new GuestAddress(0), Span, MmapLogReg.FromFile(file, 0, length));
        _replaceable.Replace(_log);
        ulong seed = 88172645463325252;
        for (var thread = 0; thread < 2; thread++)
        {
            _pages[thread] = (uint*)NativeMemory.AlignedAlloc(Marks * sizeof(uint), 4096);
            for (var i = 0; i < Marks; i++)
            {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                _pages[thread][i] = (uint)(seed % (Span / 4096));
            }
        }

        new Thread(Second) { IsBackground = true }.Start();
    }

    public override string Name => "log";

    public override string Setup => "64 GiB in pages of 4 KiB, a log of 2 MiB on tmpfs, both CPUs";

    public override string[] Filters => [];

    public override string Mebibytes => "16";

    public override string Cpus => "0,1";

    public override Row[] Rows { get; } =
    [
        new(Plain, null, "", Marks),
        new(Single, null, "1.25", Marks, Plain),
        new("replaceable log: the same, 2 threads, time a mark of both", null, "0.62", 2 * Marks, Single),
    ];

    protected override int WarmUps => 40;

    protected override double[] Measure() =>
    [
        Time(Clear, MarkPlain),
        Time(Clear, () => Mark(0)),
        Time(Clear, MarkTogether),
    ];

    private void Clear() => _log.Reset();

    private void MarkPlain()
    {
        var log = _log;
        foreach (var page in new ReadOnlySpan<uint>(_pages[0], Marks)) log.MarkDirty((ulong)page * 4096, 4096);
    }

    private void Mark(int thread)
    {
        var log = _replaceable;
        foreach (var page in new ReadOnlySpan<uint>(_pages[thread], Marks)) log.MarkDirty((ulong)page * 4096, 4096);
    }

    private void MarkTogether()
    {
        _start.SignalAndWait();
        Mark(0);
        _end.SignalAndWait();
    }

    private void Second()
    {
        while (true)
        {
            _start.SignalAndWait();
            Mark(1);
            _end.SignalAndWait();
        }
    }
}
