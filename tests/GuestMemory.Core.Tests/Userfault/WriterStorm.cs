using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Threads that write, read and give back pages of a VM without a pause, each its own, and a copy of the VM's memory that is kept up
/// to date with nothing but what is dirty, as a live migration does. A lost mark is a page in which the two differ in the end. All of it
/// touches memory outside managed code: where the handler is in this process, a collection must not wait for a fault.
/// </summary>
internal sealed unsafe partial class WriterStorm : IDisposable
{
    private const int Writers = 2;

    private readonly GuestRegionMmap _region;
    private readonly byte* _memory;
    private readonly byte[] _copy;
    private readonly Thread[] _threads;
    private readonly Exception?[] _failures = new Exception?[Writers];
    private readonly byte[] _page = new byte[4096];
    private volatile bool _over;
    private long _steps;

    public WriterStorm(GuestRegionMmap region, int pages)
    {
        _region = region;
        using var lease = region.GetMmapRegion().Lease();
        _memory = (byte*)lease.Address;
        _copy = new byte[pages * 4096];
        for (var i = 0; i < pages; i++) TestFolder.Fill(_copy.AsSpan(i * 4096, 4096), i);
        _threads = [.. Enumerable.Range(0, Writers).Select(number => new Thread(() => _failures[number] = Record.Exception(() => Write(number, pages))) { IsBackground = true })];
        foreach (var thread in _threads) thread.Start();
    }

    /// <summary>What the writers have done.</summary>
    public long Steps => Interlocked.Read(ref _steps);

    /// <summary>Copies what is dirty; how many pages that are.</summary>
    public long Copy(IReadOnlyList<DirtyBitmap> bitmaps)
    {
        var bitmap = Assert.Single(bitmaps);
        for (var page = 0; page < bitmap.PageCount; page++)
        {
            if (!bitmap.IsDirty(page)) continue;
            Read((ulong)page * 4096, _page);
            _page.CopyTo(_copy, page * 4096);
        }

        return bitmap.DirtyCount;
    }

    /// <summary>Ends the writers; what is dirty then is copied for the last time by <see cref="Copy"/>.</summary>
    public void Stop()
    {
        _over = true;
        foreach (var thread in _threads) Assert.True(thread.Join(Host.Patience), "a writer hangs");
        Assert.All(_failures, Assert.Null);
    }

    public void AssertSame()
    {
        for (var page = 0; page < _copy.Length / 4096; page++)
        {
            Read((ulong)page * 4096, _page);
            Assert.True(_page.AsSpan().SequenceEqual(_copy.AsSpan(page * 4096, 4096)), $"page {page}");
        }
    }

    public void Dispose()
    {
        _over = true;
        foreach (var thread in _threads) thread.Join(Host.Patience);
    }

    private void Read(ulong offset, Span<byte> to)
    {
        fixed (byte* start = to) memcpy(start, _memory + offset, (nuint)to.Length);
    }

    private void Write(ulong offset, ReadOnlySpan<byte> from)
    {
        fixed (byte* start = from) memcpy(_memory + offset, start, (nuint)from.Length);
    }

    [LibraryImport("libc")]
    private static partial void* memcpy(void* to, void* from, nuint count);

    private void Write(int number, int pages)
    {
        var random = new Random(number);
        var bytes = new byte[8];
        while (!_over)
        {
            var page = (ulong)(random.Next(pages / Writers) * Writers + number);
            switch (random.Next(10))
            {
                case 0:
                    _region.GetMmapRegion().Discard(page * 4096, 4096);
                    break;
                case < 4:
                    Read(page * 4096, bytes);
                    break;
                default:
                    random.NextBytes(bytes);
                    Write((page * 4096) + (ulong)(random.Next(512) * 8), bytes);
                    break;
            }

            Interlocked.Increment(ref _steps);
        }
    }
}
