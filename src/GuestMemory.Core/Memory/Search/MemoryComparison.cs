using System.Numerics;
using System.Runtime.Intrinsics;

namespace GuestMemory.Core;

/// <summary>
/// Compares two memories, address by address, on every CPU. Others may write them meanwhile: then a byte is compared as it is at its
/// moment.
/// </summary>
public sealed unsafe class MemoryComparison
{
    private readonly GuestMemoryMmap _first;
    private readonly GuestMemoryMmap _second;
    private readonly List<Part> _parts;
    private int _granularity = 4096;

    /// <param name="first">One memory.</param>
    /// <param name="second">The other.</param>
    public MemoryComparison(GuestMemoryMmap first, GuestMemoryMmap second)
    {
        ArgumentNullException.ThrowIfNull(first);
        ArgumentNullException.ThrowIfNull(second);
        (_first, _second) = (first, second);
        _parts = [.. Divide(MemoryScan.Runs(first), MemoryScan.Runs(second))];
    }

    /// <summary>
    /// Ranges begin and end at multiples of it, a power of two from 1 to 65536 bytes; 4096, a page, where not set. With 1 a range holds
    /// nothing but bytes that are different.
    /// </summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported: another number.</exception>
    public int Granularity
    {
        get => _granularity;
        init => _granularity = value is >= 1 and <= 65536 && BitOperations.IsPow2(value) ? value
            : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A granularity of {value} bytes is not supported; it is a power of two from 1 to 65536.");
    }

    /// <summary>The bytes that both memories have.</summary>
    public ulong ComparedSize => Sum(MemoryDifferenceKind.Content);

    /// <summary>Lists the ranges that differ, in ascending order, as they are found.</summary>
    /// <param name="progress">Told the bytes that were compared, by the caller's thread.</param>
    /// <param name="cancellation">Ends the comparison.</param>
    /// <exception cref="GuestMemoryException">As for a read: PageNotAccessible, HandlerGone, RegionDisposed; what was found before has been listed.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public IEnumerable<MemoryDifference> GetDifferences(Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ulong done = 0;
        MemoryDifference? last = null;
        var pieces = _parts.SelectMany(static part => part.Kind == MemoryDifferenceKind.Content
            ? MemoryScan.Pieces(part.Start, part.Last).Select(piece => new Part(piece.Start, piece.End, part.Kind))
            : [part]);
        foreach (var found in MemoryScan.Run(pieces, Compare, Report, cancellation))
        {
            // One that goes on in the next block is one.
            if (last is not null && last.Kind == found.Kind && last.LastAddress + 1 == found.Address)
            {
                last = last with { Size = last.Size + found.Size, DifferentBytes = last.DifferentBytes + found.DifferentBytes };
                continue;
            }

            if (last is not null) yield return last;
            last = found;
        }

        if (last is not null) yield return last;

        void Report(Part piece)
        {
            if (piece.Kind == MemoryDifferenceKind.Content) progress?.Invoke(done += piece.Last - piece.Start + 1);
        }
    }

    /// <summary>Compares, and gives the sums alone.</summary>
    /// <param name="progress">Told the bytes that were compared, by the caller's thread.</param>
    /// <param name="cancellation">Ends the comparison.</param>
    /// <exception cref="GuestMemoryException">As for <see cref="GetDifferences"/>.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public MemoryComparisonSummary Summarize(Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ulong bytes = 0, size = 0;
        long ranges = 0;
        foreach (var difference in GetDifferences(progress, cancellation))
        {
            if (difference.Kind != MemoryDifferenceKind.Content) continue;
            bytes += difference.DifferentBytes;
            size += difference.Size;
            ranges++;
        }

        return new MemoryComparisonSummary(ComparedSize, bytes, size, ranges, Sum(MemoryDifferenceKind.OnlyInFirst), Sum(MemoryDifferenceKind.OnlyInSecond));
    }

    /// <summary>The addresses of both memories, cut where one of them begins or ends.</summary>
    private static IEnumerable<Part> Divide(List<(ulong Start, ulong Last)> first, List<(ulong Start, ulong Last)> second)
    {
        var (i, j) = (0, 0);
        for (ulong at = 0; i < first.Count || j < second.Count;)
        {
            // Where each begins or goes on; the highest address where there is no more.
            var mine = i < first.Count ? Math.Max(first[i].Start, at) : ulong.MaxValue;
            var theirs = j < second.Count ? Math.Max(second[j].Start, at) : ulong.MaxValue;
            Part part;
            if (i < first.Count && j < second.Count && mine == theirs) part = new Part(mine, Math.Min(first[i].Last, second[j].Last), MemoryDifferenceKind.Content);
            else if (j >= second.Count || (i < first.Count && mine < theirs)) part = new Part(mine, j < second.Count ? Math.Min(first[i].Last, theirs - 1) : first[i].Last, MemoryDifferenceKind.OnlyInFirst);
            else part = new Part(theirs, i < first.Count ? Math.Min(second[j].Last, mine - 1) : second[j].Last, MemoryDifferenceKind.OnlyInSecond);
            yield return part;
            if (i < first.Count && first[i].Last == part.Last) i++;
            if (j < second.Count && second[j].Last == part.Last) j++;
            at = part.Last + 1;
        }
    }

    private ulong Sum(MemoryDifferenceKind kind) => _parts.Where(part => part.Kind == kind).Aggregate(0UL, static (sum, part) => sum + (part.Last - part.Start + 1));

    private (List<MemoryDifference> Results, Part? More) Compare(Part piece, CancellationToken cancellation)
    {
        var found = new List<MemoryDifference>();
        if (piece.Kind != MemoryDifferenceKind.Content)
        {
            var size = piece.Last - piece.Start + 1;
            return ([new MemoryDifference(piece.Start, size, size, piece.Kind)], null);
        }

        for (var at = piece.Start; ;)
        {
            var last = Math.Min(at | MemoryScan.BlockSize - 1, piece.Last);
            var length = (int)(last - at + 1);
            ulong? rest = null;
            // What may have to wait for its page comes first: while the other is looked at where it lies, a hand-over of it waits.
            var (one, other) = MemoryScan.IsDirect(_second, at) ? (_first, _second) : (_second, _first);
            MemoryScan.Use(one, at, length, (outer, _) => MemoryScan.Use(other, at, length,
                (inner, _) => rest = CompareBlock(new ReadOnlySpan<byte>(outer, length), new ReadOnlySpan<byte>(inner, length), at, found), cancellation), cancellation);
            if (rest is { } from) return (found, from > piece.Last ? null : piece with { Start = from });
            if (last == piece.Last) return (found, null);
            at = last + 1;
        }
    }

    /// <summary>Adds the ranges that differ in a block, and says where to go on when there are many.</summary>
    private ulong? CompareBlock(ReadOnlySpan<byte> first, ReadOnlySpan<byte> second, ulong address, List<MemoryDifference> found)
    {
        // Quicker than to look where they differ, and mostly they do not.
        if (first.SequenceEqual(second)) return null;
        for (var at = 0; at < first.Length;)
        {
            at += first[at..].CommonPrefixLength(second[at..]);
            if (at == first.Length) break;
            if (found.Count >= MemoryScan.MaxResults) return address + (ulong)at;
            // The unit that has the byte, and all behind it that differ too.
            var start = at - (int)Math.Min((address + (ulong)at) % (ulong)_granularity, (ulong)at);
            ulong bytes = 0;
            var end = start;
            while (end < first.Length)
            {
                var next = Math.Min(first.Length, end + (int)((ulong)_granularity - (address + (ulong)end) % (ulong)_granularity));
                var different = CountDifferent(first[end..next], second[end..next]);
                if (different == 0) break;
                bytes += different;
                end = next;
            }

            // The byte may have been written meanwhile, and be the same now.
            if (end == start) end = at + 1;
            else found.Add(new MemoryDifference(address + (ulong)start, (ulong)(end - start), bytes, MemoryDifferenceKind.Content));
            at = end;
        }

        return null;
    }

    private static ulong CountDifferent(ReadOnlySpan<byte> first, ReadOnlySpan<byte> second)
    {
        if (first.Length == 1) return first[0] == second[0] ? 0ul : 1;
        ulong same = 0;
        var at = 0;
        if (Vector256.IsHardwareAccelerated)
        {
            for (; at <= first.Length - Vector256<byte>.Count; at += Vector256<byte>.Count)
                same += (ulong)BitOperations.PopCount(Vector256.Equals(Vector256.Create(first[at..]), Vector256.Create(second[at..])).ExtractMostSignificantBits());
        }

        for (; at < first.Length; at++) same += first[at] == second[at] ? 1ul : 0;
        return (ulong)first.Length - same;
    }

    /// <summary>Addresses that both memories have, or one of them.</summary>
    private sealed record Part(ulong Start, ulong Last, MemoryDifferenceKind Kind);
}
