namespace GuestMemory.Core.Tests;

/// <summary>
/// Two threads that touch every page of a memory in random order and compare it with its image; every fifth page is removed then,
/// and must be zero when it is touched again.
/// </summary>
internal sealed class Touching
{
    private readonly GuestMemoryMmap _memory;
    private readonly int[] _order;
    private readonly Thread[] _threads;
    private readonly Exception?[] _failures = new Exception?[2];
    private long _progress, _limit;

    public Touching(GuestMemoryMmap memory, int pages, long limit = long.MaxValue)
    {
        (_memory, _limit) = (memory, limit);
        _order = [.. Enumerable.Range(0, pages)];
        new Random(1).Shuffle(_order);
        _threads = [.. Enumerable.Range(0, 2).Select(half => new Thread(() => _failures[half] = Record.Exception(() => Touch(half))))];
        foreach (var thread in _threads) thread.Start();
    }

    /// <summary>Pages that were touched.</summary>
    public long Progress => Interlocked.Read(ref _progress);

    /// <summary>No more pages than about so many are touched, so that what is to happen meanwhile does so on a busy machine too.</summary>
    public long Limit { set => Volatile.Write(ref _limit, value); }

    public bool IsDone => Array.TrueForAll(_threads, static thread => !thread.IsAlive);

    public void Join()
    {
        foreach (var thread in _threads) Assert.True(thread.Join(TimeSpan.FromMinutes(10)), $"hung after {Progress} pages");
        Assert.Equal([null, null], _failures);
        Assert.Equal(_order.Length, Progress);
    }

    private void Touch(int half)
    {
        var start = _memory.Regions[0].GuestAddress;
        var page = new byte[4096];
        var expected = new byte[4096];
        for (var i = half; i < _order.Length; i += 2)
        {
            while (Progress >= Volatile.Read(ref _limit)) Thread.Sleep(1);
            var number = _order[i];
            var address = new GuestAddress(start + ((ulong)number * 4096));
            _memory.ReadExact(address, page);
            TestFolder.Fill(expected, number);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {number}");
            if (number % 5 == 0)
            {
                _memory.Regions[0].GetMmapRegion().Discard((ulong)number * 4096, 4096);
                _memory.ReadExact(address, page);
                Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0, $"removed page {number}");
            }

            Interlocked.Increment(ref _progress);
        }
    }
}
