namespace GuestMemory.Core;

/// <summary>What was written to memory in one interval; the result of <see cref="DirtyRateMeter.Add"/>.</summary>
public sealed class DirtySample
{
    internal DirtySample(string source, TimeSpan interval, ulong byteSize, long dirtyCount, ulong dirtySize, IReadOnlyList<AddressRange> hottestRanges)
    {
        (Source, Interval, ByteSize, DirtyCount, DirtySize, HottestRanges) = (source, interval, byteSize, dirtyCount, dirtySize, hottestRanges);
        Time = DateTimeOffset.Now;
    }

    /// <summary>When the interval ended.</summary>
    public DateTimeOffset Time { get; }

    /// <summary>What tracked the writes: "region mem0", for example.</summary>
    public string Source { get; }

    /// <summary>The length of the interval.</summary>
    public TimeSpan Interval { get; }

    /// <summary>The bytes of all the memory.</summary>
    public ulong ByteSize { get; }

    /// <summary>The number of pages that were written in the interval.</summary>
    public long DirtyCount { get; }

    /// <summary>The bytes of these pages.</summary>
    public ulong DirtySize { get; }

    /// <summary>The bytes of pages that were written a second. A page that was written several times in the interval counts once.</summary>
    public double Rate => DirtySize / Interval.TotalSeconds;

    /// <summary>
    /// Where most pages were written, the hottest range first. An interval counts half as much as the one after it. A range begins and ends at
    /// multiples of 64 pages, or with the memory.
    /// </summary>
    public IReadOnlyList<AddressRange> HottestRanges { get; }

    /// <summary>The sample, for debuggers: "region ram: 3 pages in 1 s".</summary>
    public override string ToString() => $"{Source}: {DirtyCount} pages in {Interval.TotalSeconds:0.###} s";
}
