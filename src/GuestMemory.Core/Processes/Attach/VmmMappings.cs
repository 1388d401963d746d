namespace GuestMemory.Core.Processes;

/// <summary>The mappings of a VMM that guest memory can be.</summary>
internal sealed class VmmMappings(VmmProgram program)
{
    private const int Listed = 6;

    private readonly ProcessMapping[] _writable = [.. ProcessMapping.GetAll(program.ProcessId).Where(static mapping => mapping.IsWritable && mapping.Path is not ("[heap]" or "[stack]"))];

    /// <summary>Whether memory is the process's alone, or shared with its children: it has no name, or one that the process gave it (PR_SET_VMA).</summary>
    public static bool IsAnonymous(ProcessMapping mapping) => mapping.Path.Length == 0 || mapping.Path.StartsWith("[anon", StringComparison.Ordinal) || mapping.Path.StartsWith("/dev/zero", StringComparison.Ordinal);

    /// <summary>Anonymous memory of at least a size, the largest first.</summary>
    public IReadOnlyList<ProcessMapping> Anonymous(ulong least) => [.. _writable.Where(mapping => mapping.Size >= least && IsAnonymous(mapping)).OrderByDescending(static mapping => mapping.Size)];

    /// <summary>The parts of the file that is behind the largest mapping of all, in the order of the file; none where that is anonymous.</summary>
    public IReadOnlyList<(ulong Address, ulong Size)> LargestFile(ulong least) => _writable.MaxBy(static mapping => mapping.Size) is { } largest && largest.Size >= least && !IsAnonymous(largest)
        ? PartsOf(largest) : [];

    /// <summary>The parts of the file whose path begins so.</summary>
    public IReadOnlyList<(ulong Address, ulong Size)> OfFile(string path) => _writable.FirstOrDefault(mapping => mapping.Path.StartsWith(path, StringComparison.Ordinal)) is { } first ? PartsOf(first) : [];

    /// <summary>The only place that has exactly so much memory of a kind; the kernel may have cut it into several mappings.</summary>
    /// <exception cref="GuestMemoryException">LayoutUnknown: there is none, or there are several.</exception>
    public (ulong Address, ulong Size) FindOne(ulong size, Func<ProcessMapping, bool> isKind) => Find(size, isKind) switch
    {
        [var address] => (address, size),
        [] => throw Unknown($"it has no mapping of 0x{size:x} bytes that this could be. Its largest are {Largest()}"),
        var several => throw Unknown($"several of its mappings may be the memory of 0x{size:x} bytes: those at {string.Join(", ", several.Take(Listed).Select(static address => $"0x{address:x}"))}"),
    };

    /// <summary>Ranges with their places: where they are given, one behind the other in memory that is as long as all the others together, or each where memory of just its length is.</summary>
    /// <exception cref="GuestMemoryException">LayoutUnknown; ZeroSize.</exception>
    public IReadOnlyList<GuestLayoutRange> Place(IReadOnlyList<GuestLayoutRange> layout)
    {
        if (layout.Any(static range => range.Size == 0)) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A range of no bytes is none.");
        GuestLayoutRange[] open = [.. layout.Where(static range => range.ProcessAddress is null)];
        if (open.Length == 0) return layout;
        var placed = layout.Where(static range => range.ProcessAddress is not null);
        var total = open.Aggregate(0UL, static (sum, range) => sum + range.Size);
        return Find(total, static _ => true) is [var address] ? [.. placed, .. Lay(open, [(address, total)])]
            : [.. placed, .. open.Zip(open.Select(range => FindOne(range.Size, static _ => true)), static (range, block) => range with { ProcessAddress = block.Address })];
    }

    /// <summary>Ranges in blocks, one behind the other.</summary>
    public static IReadOnlyList<GuestLayoutRange> Lay(IReadOnlyList<GuestLayoutRange> layout, IReadOnlyList<(ulong Address, ulong Size)> blocks)
    {
        var laid = new List<GuestLayoutRange>();
        var (block, used) = (0, 0UL);
        foreach (var range in layout)
        {
            for (ulong done = 0; done < range.Size;)
            {
                var part = Math.Min(range.Size - done, blocks[block].Size - used);
                laid.Add(new GuestLayoutRange(range.GuestAddress + done, part, blocks[block].Address + used));
                (done, used) = (done + part, used + part);
                if (used == blocks[block].Size) (block, used) = (block + 1, 0);
            }
        }

        return laid;
    }

    /// <summary>The error where the layout cannot be found out.</summary>
    /// <param name="why">The reason, without a capital letter and a full stop.</param>
    public GuestMemoryException Unknown(string why) =>
        new(GuestMemoryError.LayoutUnknown, $"Where the memory of process {program.ProcessId} ({program.Name}) lies in its guest is not known: {why.TrimEnd('.')}.");

    private string Largest() => string.Join("; ", _writable.OrderByDescending(static mapping => mapping.Size).Take(Listed)
        .Select(static mapping => $"0x{mapping.Size:x} bytes at 0x{mapping.Address:x}{(mapping.Path.Length > 0 ? $" ({mapping.Path})" : "")}"));

    private List<ulong> Find(ulong size, Func<ProcessMapping, bool> isKind)
    {
        var found = new List<ulong>();
        if (size == 0) return found;
        // The mappings from the first one on follow each other and are of the kind; their sum is kept at no more than the size. Another process makes as many as it likes.
        var (first, sum) = (0, 0UL);
        for (var i = 0; i < _writable.Length; i++)
        {
            if (!isKind(_writable[i]))
            {
                (first, sum) = (i + 1, 0);
                continue;
            }

            if (i > first && !Follows(_writable[i - 1], _writable[i])) (first, sum) = (i, 0);
            for (sum += _writable[i].Size; sum > size; first++) sum -= _writable[first].Size;
            if (sum == size) found.Add(_writable[first].Address);
        }

        return found;
    }

    private List<(ulong Address, ulong Size)> PartsOf(ProcessMapping one)
    {
        var parts = new List<(ulong Address, ulong Size)>();
        ProcessMapping? before = null;
        foreach (var mapping in _writable.Where(mapping => mapping.Inode == one.Inode && mapping.Device == one.Device).OrderBy(static mapping => mapping.Offset))
        {
            // A part that is mapped twice is one.
            if (before is not null && mapping.Offset < before.Offset + before.Size) continue;
            if (before is not null && Follows(before, mapping)) parts[^1] = (parts[^1].Address, parts[^1].Size + mapping.Size);
            else parts.Add((mapping.Address, mapping.Size));
            before = mapping;
        }

        return parts;
    }

    private static bool Follows(ProcessMapping before, ProcessMapping after) => before.End == after.Address && before.Inode == after.Inode && before.Device == after.Device && before.IsShared == after.IsShared
        && (before.Inode == 0 || before.Offset + before.Size == after.Offset);
}
