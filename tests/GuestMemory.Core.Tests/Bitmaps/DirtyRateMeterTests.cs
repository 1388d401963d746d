namespace GuestMemory.Core.Tests;

/// <summary>How fast memory is written, and what that means for a migration.</summary>
public sealed class DirtyRateMeterTests
{
    private const int PageSize = 4096;
    private static readonly TimeSpan s_second = TimeSpan.FromSeconds(1);

    /// <summary>Four pages are written all the time, and a further one each second.</summary>
    [Fact]
    public void PagesThatAreWrittenAgainCountOnce()
    {
        var meter = new DirtyRateMeter();
        for (var i = 0; i < 8; i++) meter.Add([Of(64, 0, 1, 2, 3, 10 + i)], s_second);
        Assert.Equal((8, 8 * s_second, 64UL * PageSize), (meter.SampleCount, meter.Duration, meter.ByteSize));
        Assert.Equal(5.0 * PageSize, meter.Rate);
        Assert.Equal(12UL * PageSize, meter.WorkingSet);
        foreach (var (seconds, pages) in new[] { (0, 0), (0.5, 2.5), (1, 5), (2, 6), (3, 7), (4, 8), (8, 12), (10, 14), (1000, 64) })
            Assert.Equal(pages * PageSize, meter.DirtySizeWithin(TimeSpan.FromSeconds(seconds)), 6);
    }

    [Fact]
    public void ASampleSaysWhatWasWrittenInItsInterval()
    {
        var meter = new DirtyRateMeter();
        var sample = meter.Add([Of(64, 1, 2), Of(64, 3)], TimeSpan.FromSeconds(0.5));
        Assert.Equal((3L, 3UL * PageSize, 6.0 * PageSize, 128UL * PageSize), (sample.DirtyCount, sample.DirtySize, sample.Rate, sample.ByteSize));
        Assert.Equal("a and 1 more", sample.Source);
        Assert.Equal("a: 0 pages in 1 s", meter.Add([Of(64)], s_second).ToString());
    }

    /// <summary>Two memories of one source are told apart by their addresses, and one that grows is another one.</summary>
    [Fact]
    public void EveryMemoryHasItsOwnPages()
    {
        var meter = new DirtyRateMeter();
        meter.Add([At(0, 64, 1), At(0x100000, 64, 1)], s_second);
        meter.Add([At(0, 64, 1), At(0x100000, 64, 2)], s_second);
        Assert.Equal(3UL * PageSize, meter.WorkingSet);
        meter.Add([At(0, 200, 1, 199)], s_second);
        Assert.Equal((5UL * PageSize, 200UL * PageSize), (meter.WorkingSet, meter.ByteSize));
    }

    [Fact]
    public void TheHottestRangesComeFirst()
    {
        var meter = new DirtyRateMeter(2);
        // Words 0, 2 and 3 and 5: one page, 100 pages side by side, and 40.
        var pages = Enumerable.Range(128 + 10, 100).Concat(Enumerable.Range(320, 40)).Append(5).ToArray();
        var ranges = meter.Add([Of(384, pages)], s_second).HottestRanges;
        Assert.Equal([new AddressRange(128 * PageSize, 128 * PageSize, 128), new AddressRange(320 * PageSize, 64 * PageSize, 64)], ranges);
        // What is written no more cools down.
        for (var i = 0; i < 3; i++) ranges = meter.Add([Of(384, 5)], s_second).HottestRanges;
        Assert.Equal(128 * PageSize, (int)ranges[0].Address);
        for (var i = 0; i < 6; i++) ranges = meter.Add([Of(384, 5)], s_second).HottestRanges;
        Assert.Equal([new AddressRange(0, 64 * PageSize, 64)], ranges);
        Assert.Empty(new DirtyRateMeter(0).Add([Of(384, 5)], s_second).HottestRanges);
        Assert.Empty(new DirtyRateMeter().Add([Of(384)], s_second).HottestRanges);
        // The end of the memory is the end of a range.
        Assert.Equal([new AddressRange(0, (70 * PageSize) - 1, 70)], new DirtyRateMeter().Add([new DirtyBitmap(0, (70 * PageSize) - 1, PageSize, [ulong.MaxValue, 63], "a")], s_second).HottestRanges);
    }

    [Fact]
    public void AMemoryThatNothingIsWrittenToIsCopiedOnce()
    {
        var meter = new DirtyRateMeter();
        meter.Add([Of(2560)], s_second);
        var forecast = meter.Forecast(1 << 20, TimeSpan.FromSeconds(0.5));
        Assert.Equal(new MigrationForecast(1 << 20, TimeSpan.FromSeconds(0.5), true, 2, TimeSpan.FromSeconds(10), 10 << 20, TimeSpan.FromSeconds(0.5)), forecast);
        Assert.Equal("2 rounds, 10.0 s, of which 500 ms down", forecast.ToString());
        Assert.Equal((1, TimeSpan.FromSeconds(0.25)), (meter.Forecast(1 << 20, s_second, 1 << 18).Rounds, meter.Forecast(1 << 20, s_second, 1 << 18).Downtime));
    }

    [Fact]
    public void WhatIsWrittenFasterThanItIsCopiedDoesNotConverge()
    {
        var meter = new DirtyRateMeter();
        for (var i = 0; i < 4; i++) meter.Add([Of(2560, Enumerable.Range(0, 512).ToArray())], s_second);
        // 512 pages are 2 MiB.
        Assert.True(meter.Forecast(1 << 20, TimeSpan.FromSeconds(2.1)).Converges);
        var forecast = meter.Forecast(1 << 20, TimeSpan.FromSeconds(0.3));
        Assert.False(forecast.Converges);
        Assert.InRange(forecast.Downtime.TotalSeconds, 1.9, 2.4);
        Assert.StartsWith("does not converge: ", forecast.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public void ForecastsAndIntervalsAreChecked()
    {
        var meter = new DirtyRateMeter();
        Assert.Throws<InvalidOperationException>(() => meter.Forecast(1, s_second));
        Assert.Throws<ArgumentOutOfRangeException>(() => meter.Add([Of(64)], TimeSpan.Zero));
        Assert.Throws<ArgumentOutOfRangeException>(() => meter.Forecast(0, s_second));
        Assert.Throws<ArgumentOutOfRangeException>(() => meter.Forecast(1, -s_second));
        Assert.Equal(0, meter.Rate);
        Assert.Equal(0, meter.DirtySizeWithin(s_second));
    }

    /// <summary>A guest that is watched, and then migrated page by page as QEMU does it: what was forecast is what comes, within a quarter.</summary>
    /// <param name="writes">Writes a millisecond, each to a page of its own choice.</param>
    /// <param name="hot">How many of ten writes go to the hottest sixteenth of the memory.</param>
    /// <param name="bandwidth">Pages that are copied a millisecond.</param>
    [Theory]
    [InlineData(0, 0, 40)]
    [InlineData(2, 0, 40)]
    [InlineData(10, 5, 40)]
    [InlineData(20, 9, 40)]
    [InlineData(30, 0, 40)]
    [InlineData(8, 10, 10)]
    [InlineData(100, 10, 20)]
    [InlineData(100, 10, 5)]
    [InlineData(20, 9, 20)]
    public void TheForecastIsWhatComes(int writes, int hot, int bandwidth)
    {
        const int limit = 300;
        var guest = new Guest(writes, hot);
        var meter = new DirtyRateMeter();
        for (var i = 0; i < 64; i++)
        {
            guest.Run(100);
            meter.Add([Of(Guest.Pages, [.. guest.Take()])], TimeSpan.FromMilliseconds(100));
        }

        var forecast = meter.Forecast(bandwidth * 1000.0 * PageSize, TimeSpan.FromMilliseconds(limit));
        var (converged, milliseconds, copied) = guest.Migrate(bandwidth, limit);
        Assert.Equal(converged, forecast.Converges);
        if (!converged) return;
        Assert.InRange(forecast.Duration.TotalMilliseconds / milliseconds, 0.75, 1.25);
        Assert.InRange((double)forecast.TransferredBytes / (copied * (double)PageSize), 0.75, 1.25);
    }

    private static DirtyBitmap Of(int count, params int[] pages) => At(0, count, pages);

    private static DirtyBitmap At(ulong address, int count, params int[] pages)
    {
        var words = new ulong[(count + 63) / 64];
        foreach (var page in pages) words[page / 64] |= 1UL << (page % 64);
        return new DirtyBitmap(address, (ulong)count * PageSize, PageSize, words, "a");
    }

    /// <summary>A guest that writes at random.</summary>
    private sealed class Guest(int writes, int hot)
    {
        public const int Pages = 64 << 10;

        private readonly Random _random = new(1);
        private readonly HashSet<int> _written = [];

        public void Run(int milliseconds)
        {
            for (var i = 0; i < milliseconds * writes; i++) _written.Add(_random.Next(_random.Next(10) < hot ? Pages / 16 : Pages));
        }

        public int[] Take()
        {
            int[] pages = [.. _written];
            _written.Clear();
            return pages;
        }

        /// <summary>
        /// Copies in steps of a millisecond, round and round through the memory, and looks what was written where the rest fits into the downtime.
        /// </summary>
        public (bool Converged, int Milliseconds, long Copied) Migrate(int bandwidth, int limit)
        {
            var left = Enumerable.Repeat(true, Pages).ToArray();
            var (count, cursor, copied) = (Pages, 0, 0L);
            _written.Clear();
            for (var time = 0; time < 60_000; time++)
            {
                if (count <= bandwidth * limit && time % 50 == 0)
                {
                    foreach (var page in Take()) left[page] = true;
                    count = left.Count(static page => page);
                    if (count <= bandwidth * limit) return (true, time + (count / bandwidth), copied + count);
                }

                for (var i = 0; i < bandwidth && count > 0; cursor = (cursor + 1) % Pages)
                {
                    if (!left[cursor]) continue;
                    left[cursor] = false;
                    (count, copied, i) = (count - 1, copied + 1, i + 1);
                }

                Run(1);
            }

            return (false, 0, copied);
        }
    }
}
