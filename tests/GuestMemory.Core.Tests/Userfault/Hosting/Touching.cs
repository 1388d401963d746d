using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Two threads that touch every page of a memory in random order and compare it with its image; every fifth page is removed then,
/// and must be zero when it is touched again. A thread that has reached the limit goes on to remove and touch such a page, so that there
/// are faults at any moment.
/// </summary>
internal sealed class Touching
{
    private readonly GuestMemoryMmap _memory;
    private readonly int _pageSize;
    private readonly Func<int, int?> _numberOf;
    private readonly int[] _order;
    private readonly Thread[] _threads;
    private readonly Exception?[] _failures = new Exception?[2];
    private readonly List<(long Start, long End)>[] _touches = [[], []];
    private long _progress, _limit;

    /// <param name="memory">Of one region.</param>
    /// <param name="pages">How many pages it has.</param>
    /// <param name="limit">See <see cref="Limit"/>.</param>
    /// <param name="pageSize">The bytes of a page.</param>
    /// <param name="numberOf">The number that a page is filled with, null for zeros; its own where this is not given.</param>
    public Touching(GuestMemoryMmap memory, int pages, long limit = long.MaxValue, int pageSize = 4096, Func<int, int?>? numberOf = null)
    {
        (_memory, _limit, _pageSize, _numberOf) = (memory, limit, pageSize, numberOf ?? (static page => page));
        _order = [.. Enumerable.Range(0, pages)];
        new Random(1).Shuffle(_order);
        _threads = [.. Enumerable.Range(0, 2).Select(half => new Thread(() => _failures[half] = Record.Exception(() => Touch(half))) { IsBackground = true })];
        foreach (var thread in _threads) thread.Start();
    }

    /// <summary>Pages that were touched.</summary>
    public long Progress => Interlocked.Read(ref _progress);

    /// <summary>No more pages than so many are touched, so that what is to happen meanwhile does so on a busy machine too.</summary>
    public long Limit { set => Volatile.Write(ref _limit, value); }

    /// <summary>Whether a thread has touched all of its pages, or has failed.</summary>
    public bool IsDone => Array.Exists(_threads, static thread => !thread.IsAlive);

    public void Join()
    {
        foreach (var thread in _threads) Assert.True(thread.Join(TimeSpan.FromMinutes(10)), $"hung after {Progress} pages");
        Assert.Equal([null, null], _failures);
        Assert.Equal(_order.Length, Progress);
    }

    /// <summary>Of each span between two moments (timestamps of <see cref="Stopwatch"/>) the longest touch or removal that was under way in it, in milliseconds. After <see cref="Join"/>.</summary>
    public double[] Longest(IReadOnlyList<long> moments)
    {
        var longest = new double[moments.Count];
        foreach (var (start, end) in _touches.SelectMany(static touches => touches))
        {
            for (var i = 0; i < longest.Length; i++)
            {
                if (end < moments[i] || (i + 1 < longest.Length && start >= moments[i + 1])) continue;
                longest[i] = Math.Max(longest[i], Stopwatch.GetElapsedTime(start, end).TotalMilliseconds);
            }
        }

        return longest;
    }

    private void Touch(int half)
    {
        var page = new byte[_pageSize];
        var expected = new byte[_pageSize];
        int? removed = null;
        for (var i = half; i < _order.Length; i += 2)
        {
            while (i >= Volatile.Read(ref _limit))
            {
                if (removed is { } again) Remove(half, again, page);
                Thread.Sleep(1);
            }

            var number = _order[i];
            var start = Stopwatch.GetTimestamp();
            _memory.ReadExact(AddressOf(number), page);
            _touches[half].Add((start, Stopwatch.GetTimestamp()));
            if (_numberOf(number) is { } filled) TestFolder.Fill(expected, filled);
            else expected.AsSpan().Clear();
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {number}");
            if (number % 5 == 0) Remove(half, (removed = number).Value, page);
            Interlocked.Increment(ref _progress);
        }
    }

    private void Remove(int half, int number, byte[] page)
    {
        var start = Stopwatch.GetTimestamp();
        _memory.Regions[0].GetMmapRegion().Discard((ulong)number * (ulong)_pageSize, (ulong)_pageSize);
        _memory.ReadExact(AddressOf(number), page);
        _touches[half].Add((start, Stopwatch.GetTimestamp()));
        Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0, $"removed page {number}");
    }

    private GuestAddress AddressOf(int number) => new(_memory.Regions[0].GuestAddress + ((ulong)number * (ulong)_pageSize));
}
