namespace GuestMemory.Core.Tests;

public sealed class AtomicBitmapConcurrencyTests
{
    private const int Pages = (1 << 14) + 77;
    private const int Markers = 8;
    private const int Takers = 2;
    private const int Marks = 100_000;

    /// <summary>Eight threads mark pages and ranges, two take: what was collected is what was marked.</summary>
    [Fact]
    public void NoMarkIsLostWhileTaking()
    {
        var bitmap = new AtomicBitmap(Pages * 100UL, 100);
        var marked = Enumerable.Range(0, Markers).Select(_ => new AtomicBitmap(Pages * 100UL, 100)).ToArray();
        var collected = Enumerable.Range(0, Takers).Select(_ => new ulong[bitmap.WordCount]).ToArray();
        var running = Markers;
        void Mark(int seed)
        {
            var random = new Random(seed);
            for (var i = 0; i < Marks; i++)
            {
                var offset = (ulong)random.NextInt64(0, Pages * 100L);
                var length = random.Next(50) == 0 ? (ulong)random.Next(0, 40_000) : 1;
                bitmap.MarkDirty(offset, length);
                marked[seed].MarkDirty(offset, length);
            }

            Interlocked.Decrement(ref running);
        }

        void Take(int taker)
        {
            var taken = new ulong[bitmap.WordCount];
            bool last;
            do
            {
                last = Volatile.Read(ref running) == 0;
                bitmap.GetAndReset(taken);
                for (var i = 0; i < taken.Length; i++) collected[taker][i] |= taken[i];
            }
            while (!last);
        }

        RunAll(Enumerable.Range(0, Markers).Select(seed => (Action)(() => Mark(seed))).Concat(Enumerable.Range(0, Takers).Select(taker => (Action)(() => Take(taker)))));
        Assert.False(bitmap.Any());
        Assert.Equal(Union(marked.Select(mine => mine.Snapshot())), Union(collected));
    }

    /// <summary>
    /// Who takes a mark sees what was written before it, although marking tests first: the last value written to a page is
    /// either copied by the taker or its page is dirty still.
    /// </summary>
    [Fact]
    public void WhatWasWrittenBeforeAMarkIsSeenByWhoTakesIt()
    {
        var bitmap = new AtomicBitmap(2, 1);
        var value = 0;
        var copy = 0;
        var taken = new ulong[1];
        for (var round = 0; round < 200; round++)
        {
            bitmap.MarkDirty(0, 1);
            using var start = new Barrier(2);
            RunAll([
                () =>
                {
                    start.SignalAndWait();
                    for (var i = 0; i < 100; i++)
                    {
                        value++;
                        bitmap.MarkDirty(0, 1);
                    }
                },
                () =>
                {
                    start.SignalAndWait();
                    for (var i = 0; i < 20; i++)
                    {
                        bitmap.GetAndReset(taken);
                        if (taken[0] != 0) copy = Volatile.Read(ref value);
                    }
                },
            ]);
            if (!bitmap.IsDirtyAt(0)) Assert.Equal(value, copy);
        }
    }

    private static ulong[] Union(IEnumerable<ulong[]> all) => all.Aggregate((a, b) => [.. a.Zip(b, (x, y) => x | y)]);

    private static void RunAll(IEnumerable<Action> actions)
    {
        var threads = actions.Select(action => new Thread(() => action())).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
    }
}
