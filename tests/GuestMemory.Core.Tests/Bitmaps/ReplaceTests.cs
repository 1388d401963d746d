namespace GuestMemory.Core.Tests;

/// <summary>What holds on the return of a replacement of a tracker.</summary>
public sealed class ReplaceTests
{
    /// <summary>
    /// Once a replacement has returned, every mark can be seen in the former tracker, or comes to the new one: who takes the
    /// former one's marks then has all that were made there alone.
    /// </summary>
    /// <param name="pages">A word's part, which is marked by an exchange; a whole word, by a store, which a reader may overtake.</param>
    [Theory]
    [InlineData(3)]
    [InlineData(64)]
    public void AMarkIsInTheFormerTrackerOrInTheNewOne(int pages)
    {
        const int Rounds = 100_000;
        AtomicBitmap[] trackers = [new(64, 1), new(64, 1)];
        var region = new BitmapMmapRegion();
        region.Replace(trackers[0]);
        var marked = 0;
        var replaced = 0;
        var inFormer = false;
        Stress.RunAll(
            () =>
            {
                for (var round = 1; round <= Rounds; round++)
                {
                    Wait(ref replaced, round - 1);
                    region.MarkDirty(0, (ulong)pages);
                    Volatile.Write(ref marked, round);
                    Wait(ref replaced, round);
                }
            },
            () =>
            {
                var lost = 0;
                for (var round = 1; round <= Rounds; round++)
                {
                    var (former, next) = (trackers[(round - 1) & 1], trackers[round & 1]);
                    // Now a little earlier than the marker, now a little later.
                    for (var i = round % 40; i > 0; i--) Thread.SpinWait(1);
                    region.Replace(next);
                    inFormer = former.IsDirtyAt(0);
                    Wait(ref marked, round);
                    if (!inFormer && !next.IsDirtyAt(0)) lost++;
                    former.Reset();
                    next.Reset();
                    Volatile.Write(ref replaced, round);
                }

                Assert.Equal(0, lost);
            });
    }

    /// <summary>Between a mark and the marker's second look the tracker goes, is emptied, and comes back.</summary>
    [Fact]
    public void AMarkIsNotLostWhereATrackerComesBack()
    {
        var region = new BitmapMmapRegion();
        var tracker = new Returning(region);
        region.Replace(tracker);
        region.MarkDirty(5, 1);
        Assert.True(region.IsDirtyAt(5));
        Assert.Equal(2, tracker.Marks);
    }

    /// <summary>Stands for another thread, which comes in at the worst moment.</summary>
    private sealed class Returning(BitmapMmapRegion region) : IDirtyTracker
    {
        private readonly AtomicBitmap _bits = new(64, 1);

        public int Marks { get; private set; }

        public ulong PageSize => 1;

        public ulong OffsetInFirstPage => 0;

        public void MarkDirty(ulong offset, ulong length)
        {
            _bits.MarkDirty(offset, length);
            if (++Marks > 1) return;
            region.Replace(new AtomicBitmap(64, 1));
            _bits.Reset();
            region.Replace(this);
        }

        public bool IsDirtyAt(ulong offset) => _bits.IsDirtyAt(offset);

        public BitmapSlice SliceAt(ulong offset) => new(this, offset);

        public ulong[] Snapshot() => _bits.Snapshot();

        public ulong[] GetAndReset() => _bits.GetAndReset();

        public void Reset() => _bits.Reset();
    }

    private static void Wait(ref int place, int value)
    {
        var spins = 0;
        while (Volatile.Read(ref place) < value)
        {
            // Two threads alone never wait long, unless a third one has a processor.
            if (++spins % 1000 == 0) Thread.Yield();
        }
    }
}
