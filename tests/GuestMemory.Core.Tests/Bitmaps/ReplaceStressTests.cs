using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Eight threads write, two take, one replaces the tracker by bitmaps and shared logs, with and without what is marked. In rounds, in
/// each of which a page is written and marked once at most, so that no later mark hides one that was lost: what was collected is
/// what was marked, and who collects a page sees what was written to it.
/// </summary>
public sealed class ReplaceStressTests : IDisposable
{
    private const int Markers = 8, Takers = 2;
    private const int Block = 256;
    private const int Pages = 64 * Block;
    private const ulong Page = 4096, Size = Pages * Page, Start = 0x40000000;
    private readonly TestFolder _folder = new();
    private readonly GuestRegionMmap _region = new(new MmapRegionBuilder(Size).WithDirtyTracking().Build(), new GuestAddress(Start));
    private readonly VolatileSlice _slice;
    private readonly IDirtyTracker[] _trackers;

    // Of this round: the pages that each marker marked, those that were collected, how many markers are at work.
    private readonly bool[][] _marked = [.. Enumerable.Range(0, Markers).Select(_ => new bool[Pages])];
    private readonly ulong[][] _collected = [.. Enumerable.Range(0, Takers + 1).Select(_ => new ulong[Pages / 64])];
    private int _running;
    private int _round;
    private int _replaced;

    public ReplaceStressTests()
    {
        _slice = _region.AsVolatileSlice();
        _trackers = [new AtomicBitmap(Size, Page), new AtomicBitmap(Size, Page), Log(), Log(), Log()];
        _region.GetMmapRegion().SetTracker(_trackers[0]);
    }

    public void Dispose()
    {
        _region.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void NoMarkIsLostWhileTrackersAreReplaced()
    {
        var duration = Stress.Duration(30);
        var clock = Stopwatch.StartNew();
        var over = false;
        Exception? failure = null;
        using var start = new Barrier(Markers + Takers + 2);
        using var end = new Barrier(Markers + Takers + 2);
        IEnumerable<Action> actions =
        [
            .. Enumerable.Range(0, Markers).Select(marker => (Action)(() => Mark(marker))),
            .. Enumerable.Range(0, Takers).Select(taker => (Action)(() => Take(taker))),
            Replace,
        ];
        void InRounds(Action action)
        {
            while (true)
            {
                start.SignalAndWait();
                if (Volatile.Read(ref over)) return;
                if (Record.Exception(action) is { } exception) Volatile.Write(ref failure, exception);
                end.SignalAndWait();
            }
        }

        Stress.RunAll(actions.Select(action => (Action)(() => InRounds(action))).Append(() =>
        {
            try
            {
                do
                {
                    Volatile.Write(ref _running, Markers);
                    _round++;
                    start.SignalAndWait();
                    end.SignalAndWait();
                    CheckRound();
                }
                while (clock.Elapsed < duration && failure is null);
            }
            finally
            {
                Volatile.Write(ref over, true);
                start.SignalAndWait();
            }
        }));
        Assert.Null(failure);
        Assert.True(_replaced > _round, $"{_replaced} replacements in {_round} rounds");
    }

    /// <summary>Writes to and marks pages of the blocks that are this marker's in this round.</summary>
    private void Mark(int marker)
    {
        try
        {
            MarkBlocks(marker, new Random(unchecked((_round * Markers) + marker)));
        }
        finally
        {
            Interlocked.Decrement(ref _running);
        }
    }

    private void MarkBlocks(int marker, Random random)
    {
        for (var block = 0; block < Pages / Block; block++)
        {
            if ((block + _round) % Markers != marker) continue;
            var first = block * Block;
            switch (random.Next(4))
            {
                case 0:
                    break;
                case 1:
                    // A run, written by its address and marked at once: by whole words, which are stored and not exchanged.
                    var (from, to) = (first + random.Next(100), first + Block - random.Next(100));
                    for (var page = from; page < to; page++)
                    {
                        using var place = _slice.AlignedAsMut<int>((ulong)page * Page);
                        place.Value = _round;
                    }
                    _slice.Bitmap.MarkDirty((ulong)from * Page, (ulong)(to - from) * Page);
                    for (var page = from; page < to; page++) _marked[marker][page] = true;
                    break;
                default:
                    for (var page = first + random.Next(5); page < first + Block; page += random.Next(1, 5))
                    {
                        _slice.WriteObject((ulong)page * Page, _round);
                        _marked[marker][page] = true;
                    }

                    break;
            }
        }
    }

    private void Take(int taker)
    {
        while (Volatile.Read(ref _running) > 0) Collect(taker, _region.GetDirtyBitmap(clear: true).AsWords());
    }

    private void Replace()
    {
        var random = new Random(_round);
        while (Volatile.Read(ref _running) > 0)
        {
            var former = _region.RequireTracker();
            var next = _trackers[random.Next(_trackers.Length)];
            if (ReferenceEquals(former, next)) continue;
            var keep = random.Next(2) == 0;
            // Whatever was marked there is elsewhere, or was taken: a mark that comes late must not count on this one's return.
            next.Reset();
            _region.GetMmapRegion().SetTracker(next, keep);
            _replaced++;
            // What the new one does not bring over is this thread's to take.
            if (!keep) Collect(Takers, former.GetAndReset());
        }
    }

    private void Collect(int taker, ReadOnlySpan<ulong> words)
    {
        for (var word = 0; word < words.Length; word++)
        {
            _collected[taker][word] |= words[word];
            for (var bits = words[word]; bits != 0; bits &= bits - 1)
            {
                var page = (word * 64) + System.Numerics.BitOperations.TrailingZeroCount(bits);
                Assert.Equal(_round, _slice.ReadObject<int>((ulong)page * Page));
            }
        }
    }

    private void CheckRound()
    {
        Collect(Takers, _region.GetDirtyBitmap(clear: true).AsWords());
        for (var page = 0; page < Pages; page++)
        {
            var marked = _marked.Any(mine => mine[page]);
            var collected = _collected.Any(mine => (mine[page / 64] >> (page % 64) & 1) != 0);
            if (marked != collected) Assert.Fail($"round {_round}: page {page} was {(marked ? "marked and not collected" : "collected and not marked")}; {_replaced} replacements");
        }

        foreach (var mine in _marked) Array.Clear(mine);
        foreach (var mine in _collected) Array.Clear(mine);
    }

    private AtomicBitmapMmap Log()
    {
        var length = MmapLogReg.RequiredLength(new GuestAddress(Start + Size - 1));
        using var file = File.OpenHandle(_folder[Path.GetRandomFileName()], FileMode.CreateNew, FileAccess.ReadWrite);
        RandomAccess.SetLength(file, (long)length);
        return new AtomicBitmapMmap(new GuestAddress(Start), Size, MmapLogReg.FromFile(file, 0, length));
    }
}
