namespace GuestMemory.Core;

/// <summary>Searches guest memory, on every CPU. Others may write the memory meanwhile: a match is what was there when it was read.</summary>
public sealed unsafe class MemorySearch
{
    // At least a hundred matches with the longest context.
    private const int MaxBytes = 16 << 20;

    private static readonly Comparer<Found> s_byAddress = Comparer<Found>.Create(static (one, other) => one.Match.Address.CompareTo(other.Match.Address));

    private readonly MemoryPattern[] _patterns;
    private readonly int _reach;
    private ulong _alignment = 1;
    private int _context = 16;

    /// <param name="patterns">What to search for, at least one.</param>
    /// <exception cref="ArgumentException">There is none.</exception>
    public MemorySearch(params MemoryPattern[] patterns)
    {
        ArgumentNullException.ThrowIfNull(patterns);
        if (patterns.Length == 0) throw new ArgumentException("There is no pattern.", nameof(patterns));
        _patterns = patterns;
        _reach = patterns.Max(static pattern => pattern.Reach);
    }

    /// <summary>Matches begin at guest addresses that are multiples of it; 1 where not set.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is 0.</exception>
    public ulong Alignment
    {
        get => _alignment;
        init
        {
            ArgumentOutOfRangeException.ThrowIfZero(value);
            _alignment = value;
        }
    }

    /// <summary>How many bytes before a match, and how many behind it, belong to its context: 0 to 65536; 16 where not set.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is less than 0 or more than 65536.</exception>
    public int Context
    {
        get => _context;
        init
        {
            ArgumentOutOfRangeException.ThrowIfNegative(value);
            ArgumentOutOfRangeException.ThrowIfGreaterThan(value, 65536);
            _context = value;
        }
    }

    /// <summary>How many matches a piece gives before the caller has to take them; with a long context they are large.</summary>
    private int MaxResults => Math.Min(MemoryScan.MaxResults, MaxBytes / (_reach + (2 * _context)));

    /// <summary>
    /// Lists the matches in ascending order, as they are found. Bytes may overlap with those of the match before; a match of a regular
    /// expression begins where the one before has ended. A match may lie in regions that touch.
    /// </summary>
    /// <param name="memory">The memory.</param>
    /// <param name="progress">Told the bytes that were searched, by the caller's thread.</param>
    /// <param name="cancellation">Ends the search.</param>
    /// <exception cref="GuestMemoryException">As for a read: PageNotAccessible, HandlerGone, RegionDisposed; what was found before has been listed.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public IEnumerable<MemoryMatch> Find(GuestMemoryMmap memory, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        return FindIn(memory, [.. MemoryScan.Runs(memory)], progress, cancellation);
    }

    /// <summary>The same in a part of the memory: matches that begin and end in it.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="address">Where the part begins.</param>
    /// <param name="size">Its bytes; what of it is not mapped is left out.</param>
    /// <param name="progress">Told the bytes that were searched.</param>
    /// <param name="cancellation">Ends the search.</param>
    /// <exception cref="GuestMemoryException">As for all of it, and InvalidGuestAddress: nothing of the part is mapped.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public IEnumerable<MemoryMatch> Find(GuestMemoryMmap memory, GuestAddress address, ulong size, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (size == 0) return [];
        var last = address.CheckedAdd(size - 1)?.Value ?? ulong.MaxValue;
        (ulong Start, ulong Last)[] parts = [.. MemoryScan.Runs(memory).Where(run => run.Start <= last && run.Last >= address.Value)
            .Select(run => (Math.Max(run.Start, address.Value), Math.Min(run.Last, last)))];
        if (parts.Length == 0) throw new GuestMemoryException(GuestMemoryError.InvalidGuestAddress, $"Nothing is mapped in the 0x{size:x} bytes at {address}. The memory holds {memory}.");
        return FindIn(memory, parts, progress, cancellation);
    }

    private IEnumerable<MemoryMatch> FindIn(GuestMemoryMmap memory, (ulong Start, ulong Last)[] parts, Action<ulong>? progress, CancellationToken cancellation)
    {
        ulong done = 0;
        var ends = new Dictionary<string, ulong>(StringComparer.Ordinal);
        var pieces = parts.SelectMany(part => MemoryScan.Pieces(part.Start, part.Last).Select(piece => new Piece(part.Start, part.Last, piece.Start, piece.End)));
        foreach (var match in MemoryScan.Run(pieces, (piece, token) => Search(memory, piece, token), piece => progress?.Invoke(done += piece.Last - piece.Start + 1), cancellation))
        {
            // One that reaches into the next piece was not known there.
            if (match.IsExclusive && ends.TryGetValue(match.Match.Pattern, out var end) && match.Match.Address < end) continue;
            if (match.IsExclusive) ends[match.Match.Pattern] = match.Match.Address + match.Match.Size;
            yield return match.Match;
        }
    }

    private (List<Found> Results, Piece? More) Search(GuestMemoryMmap memory, Piece piece, CancellationToken cancellation)
    {
        var found = new List<Found>();
        for (var at = piece.Start; ;)
        {
            var last = Math.Min(at | MemoryScan.BlockSize - 1, piece.Last);
            // A regular expression may ask what stands before a match.
            var start = at - Math.Min(at - piece.RunStart, (ulong)Math.Max(_context, 1));
            var end = last + Math.Min(piece.RunLast - last, (ulong)(_reach + _context));
            ulong? rest = null;
            MemoryScan.Use(memory, start, (int)(end - start + 1), (bytes, length) => rest = SearchBlock(memory, bytes, length, start, (int)(at - start), (int)(last - start + 1), found), cancellation);
            if (rest is { } from) return (found, from > piece.Last ? null : piece with { Start = from });
            if (last == piece.Last) return (found, null);
            at = last + 1;
        }
    }

    /// <summary>Adds the matches of a block, and says where to go on when there are many.</summary>
    private ulong? SearchBlock(GuestMemoryMmap memory, byte* bytes, int length, ulong address, int from, int until, List<Found> found)
    {
        var before = found.Count;
        var limit = int.MaxValue;
        foreach (var pattern in _patterns)
        {
            var count = 0;
            pattern.Find(new ReadOnlySpan<byte>(bytes, length), from, Math.Min(until, limit), Alignment, address, (at, size) =>
            {
                if (Take(memory, new ReadOnlySpan<byte>(bytes, length), address, at, size, pattern) is { } match) found.Add(new Found(match, pattern.IsExclusive));
                if (++count < MaxResults) return true;
                // The other patterns get no further in this round.
                limit = at + (pattern.IsExclusive ? size : 1);
                return false;
            });
        }

        if (limit != int.MaxValue) found.RemoveAll(each => each.Match.Address >= address + (ulong)limit);
        if (_patterns.Length > 1) found.Sort(before, found.Count - before, s_byAddress);
        if (limit == int.MaxValue) return found.Count < MaxResults ? null : Next(until);
        return Next(limit);

        ulong? Next(int at) => address + (ulong)at;
    }

    private MemoryMatch? Take(GuestMemoryMmap memory, ReadOnlySpan<byte> block, ulong address, int at, int size, MemoryPattern pattern)
    {
        var first = Math.Max(0, at - _context);
        var context = block[first..Math.Min(block.Length, at + size + _context)].ToArray();
        var bytes = context.AsSpan(at - first, Math.Min(size, context.Length - (at - first))).ToArray();
        if (!pattern.IsMatch(bytes)) return null;
        var guest = address + (ulong)at;
        return new MemoryMatch(guest, bytes, new MemoryBlock(address + (ulong)first, context), memory.FindRegion(new GuestAddress(guest))!.Name, pattern.Text);
    }

    /// <summary>A part of a run that one task searches.</summary>
    private sealed record Piece(ulong RunStart, ulong RunLast, ulong Start, ulong Last);

    private readonly record struct Found(MemoryMatch Match, bool IsExclusive);
}
