namespace GuestMemory.Core.VmControl;

/// <summary>
/// Gives out ranges of addresses from pools, and takes them back (crosvm's <c>resources::AddressAllocator</c>): MMIO, ports,
/// interrupts, whatever has numbers. Not for several threads at once.
/// </summary>
public sealed class AddressAllocator
{
    private readonly List<AddressInterval> _pools = [];
    private readonly List<AddressInterval> _free = [];
    private readonly Dictionary<Alloc, (AddressInterval Range, string Tag)> _allocs = [];
    private readonly ulong _minAlign;
    private readonly ulong _preferredAlign;

    /// <summary>An allocator of the addresses of one pool.</summary>
    /// <param name="pool">What it may give out; nothing where it is empty.</param>
    /// <param name="minAlign">Every range starts at a multiple of this power of two.</param>
    /// <param name="preferredAlign">What is tried first where no alignment is asked for; a power of two of at least <paramref name="minAlign"/>.</param>
    /// <exception cref="GuestMemoryException">BadAlignment.</exception>
    public AddressAllocator(AddressInterval pool, ulong minAlign = 4, ulong? preferredAlign = null)
        : this([pool], minAlign, preferredAlign)
    {
    }

    /// <summary>An allocator of the addresses of several pools.</summary>
    /// <exception cref="GuestMemoryException">BadAlignment; RegionOverlap (upstream does not look).</exception>
    public AddressAllocator(IEnumerable<AddressInterval> pools, ulong minAlign = 4, ulong? preferredAlign = null)
    {
        ArgumentNullException.ThrowIfNull(pools);
        _minAlign = minAlign;
        _preferredAlign = preferredAlign ?? minAlign;
        if (!ulong.IsPow2(_minAlign)) throw BadAlignment(_minAlign);
        if (!ulong.IsPow2(_preferredAlign) || _preferredAlign < _minAlign) throw BadAlignment(_preferredAlign);
        foreach (var pool in pools.Where(static pool => !pool.IsEmpty)) InsertAt(pool);
    }

    /// <summary>For a debugger and for logs: the allocations and the pools.</summary>
    public override string ToString() => $"{_allocs.Count} allocated from {(_pools.Count == 0 ? "no pool" : string.Join(", ", _pools))}";

    /// <summary>The pools, as they were given.</summary>
    public IReadOnlyList<AddressInterval> Pools => _pools;

    /// <summary>The holders and their addresses.</summary>
    internal IEnumerable<KeyValuePair<Alloc, AddressInterval>> Allocations => _allocs.Select(static held => KeyValuePair.Create(held.Key, held.Value.Range));

    /// <summary>Whether nothing is allocated.</summary>
    public bool IsEmpty => _allocs.Count == 0;

    /// <summary>The highest address that is free, or 0 where none is (upstream: get_max_addr).</summary>
    public ulong MaxAddress => _free.Count == 0 ? 0 : _free[^1].End;

    /// <summary>The lowest free range of a size, aligned as preferred or, where that has no room, as it must be.</summary>
    /// <returns>The first address.</returns>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, OutOfSpace.</exception>
    public ulong Allocate(ulong size, Alloc alloc, string tag) => Start(TryAllocate(size, alloc, tag, null, reverse: false, out var range), range);

    /// <summary>The lowest free range of a size that starts at a multiple of <paramref name="alignment"/> (and of the least alignment).</summary>
    /// <returns>The first address.</returns>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, BadAlignment, OutOfSpace.</exception>
    public ulong AllocateWithAlign(ulong size, Alloc alloc, string tag, ulong alignment) =>
        Start(TryAllocate(size, alloc, tag, alignment, reverse: false, out var range), range);

    /// <summary>As <see cref="Allocate"/>, but the highest range (upstream: reverse_allocate).</summary>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, OutOfSpace.</exception>
    public ulong ReverseAllocate(ulong size, Alloc alloc, string tag) => Start(TryAllocate(size, alloc, tag, null, reverse: true, out var range), range);

    /// <summary>As <see cref="AllocateWithAlign"/>, but the highest range.</summary>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, BadAlignment, OutOfSpace.</exception>
    public ulong ReverseAllocateWithAlign(ulong size, Alloc alloc, string tag, ulong alignment) =>
        Start(TryAllocate(size, alloc, tag, alignment, reverse: true, out var range), range);

    /// <summary>Allocates exactly these addresses.</summary>
    /// <exception cref="GuestMemoryException">ExistingAlloc (of the same holder, or of another who has one of them), AllocSizeZero, OutOfSpace.</exception>
    public void AllocateAt(AddressInterval range, Alloc alloc, string tag) => Check(TryAllocateAt(range, alloc, tag));

    /// <summary>Takes back what a holder has.</summary>
    /// <returns>The range.</returns>
    /// <exception cref="GuestMemoryException">BadAlloc: it has nothing.</exception>
    public AddressInterval Release(Alloc alloc)
    {
        Check(TryRelease(alloc, out var range));
        return range;
    }

    /// <summary>Takes back the range that has an address in it.</summary>
    /// <returns>The range.</returns>
    /// <exception cref="GuestMemoryException">OutOfSpace: no holder has it.</exception>
    public AddressInterval ReleaseContaining(ulong address)
    {
        Check(TryReleaseContaining(address, out var range));
        return range;
    }

    /// <summary>Adds a pool.</summary>
    /// <exception cref="GuestMemoryException">RegionOverlap; AllocSizeZero where it is empty.</exception>
    public void InsertAt(AddressInterval pool)
    {
        if (pool.IsEmpty) throw SizeZero();
        var other = _pools.FindIndex(pool.Overlaps);
        if (other >= 0) throw new GuestMemoryException(GuestMemoryError.RegionOverlap, $"The addresses {pool} overlap those of the pool {_pools[other]}.");
        _pools.Add(pool);
        Free(pool);
    }

    /// <summary>What a holder has, and what it was called; null where it has nothing.</summary>
    public (AddressInterval Range, string Tag)? Get(Alloc alloc) => _allocs.TryGetValue(alloc, out var entry) ? entry : null;

    /// <summary>The address at an offset into a PCI device's register.</summary>
    /// <exception cref="GuestMemoryException">InvalidAlloc: no register, or not known; OutOfBounds: the range, which may not be empty, does not lie in the register.</exception>
    public ulong AddressFromPciOffset(Alloc alloc, ulong offset, ulong size) => Start(TryAddressFromPciOffset(alloc, offset, size, out var range), range);

    internal GuestMemoryException? TryAllocate(ulong size, Alloc alloc, string tag, ulong? alignment, bool reverse, out AddressInterval range)
    {
        range = AddressInterval.Empty;
        if (_allocs.ContainsKey(alloc)) return Existing(alloc);
        if (size == 0) return SizeZero();
        if (alignment is { } given && !ulong.IsPow2(given)) return BadAlignment(given);
        var first = Math.Max(alignment ?? _preferredAlign, _minAlign);
        var found = Find(size, first, reverse) ?? (alignment is null && first != _minAlign ? Find(size, _minAlign, reverse) : null);
        if (found is null) return OutOfSpace($"No {size} addresses in a row are free.");
        range = found.Value;
        Take(range, alloc, tag);
        return null;
    }

    internal GuestMemoryException? TryAllocateAt(AddressInterval range, Alloc alloc, string tag)
    {
        if (_allocs.ContainsKey(alloc)) return Existing(alloc);
        if (range.IsEmpty) return SizeZero();
        if (!_free.Exists(free => free.Contains(range)))
        {
            foreach (var (holder, entry) in _allocs)
            {
                if (entry.Range.Overlaps(range)) return Existing(holder);
            }

            return OutOfSpace($"The addresses {range} are not in a pool.");
        }

        Take(range, alloc, tag);
        return null;
    }

    internal GuestMemoryException? TryRelease(Alloc alloc, out AddressInterval range)
    {
        range = AddressInterval.Empty;
        if (!_allocs.Remove(alloc, out var entry)) return new GuestMemoryException(GuestMemoryError.BadAlloc, $"{alloc} has no addresses.");
        range = entry.Range;
        Free(range);
        return null;
    }

    internal GuestMemoryException? TryReleaseContaining(ulong address, out AddressInterval range)
    {
        range = AddressInterval.Empty;
        foreach (var (holder, entry) in _allocs)
        {
            if (entry.Range.Contains(address)) return TryRelease(holder, out range);
        }

        return OutOfSpace($"The address 0x{address:x} is not allocated.");
    }

    internal GuestMemoryException? TryAddressFromPciOffset(Alloc alloc, ulong offset, ulong size, out AddressInterval range)
    {
        range = AddressInterval.Empty;
        if (alloc is not Alloc.PciBar || Get(alloc) is not { } entry)
            return new GuestMemoryException(GuestMemoryError.InvalidAlloc, $"{alloc} is not a PCI register with addresses.");
        var found = offset <= ulong.MaxValue - entry.Range.Start ? AddressInterval.FromStartAndSize(entry.Range.Start + offset, size) : null;
        if (found is not { } inside || !entry.Range.Contains(inside))
            return new GuestMemoryException(GuestMemoryError.OutOfBounds, $"{size} bytes at offset {offset} do not lie in {alloc}, {entry.Range}.");
        range = inside;
        return null;
    }

    internal static GuestMemoryException OutOfSpace(string message) => new(GuestMemoryError.OutOfSpace, message);

    internal static void Check(GuestMemoryException? error)
    {
        if (error is not null) throw error;
    }

    internal static ulong Start(GuestMemoryException? error, AddressInterval range) => error is null ? range.Start : throw error;

    private AddressInterval? Find(ulong size, ulong alignment, bool reverse)
    {
        for (var i = 0; i < _free.Count; i++)
        {
            var free = reverse ? _free[^(i + 1)] : _free[i];
            var start = reverse ? HighestStart(free, size, alignment) : LowestStart(free, alignment);
            if (start is { } at && AddressInterval.FromStartAndSize(at, size) is { } range && free.Contains(range)) return range;
        }

        return null;
    }

    private static ulong? LowestStart(AddressInterval free, ulong alignment) =>
        free.Start <= ulong.MaxValue - (alignment - 1) ? free.Start + (alignment - 1) & ~(alignment - 1) : null;

    private static ulong? HighestStart(AddressInterval free, ulong size, ulong alignment) =>
        free.End >= size - 1 ? free.End - (size - 1) & ~(alignment - 1) : null;

    private void Take(AddressInterval range, Alloc alloc, string tag)
    {
        var index = _free.FindIndex(free => free.Contains(range));
        var (before, after) = _free[index].NonOverlappingRanges(range);
        _free.RemoveAt(index);
        if (!after.IsEmpty) _free.Insert(index, after);
        if (!before.IsEmpty) _free.Insert(index, before);
        _allocs.Add(alloc, (range, tag));
    }

    /// <summary>Puts a range among the free ones, joined with its neighbours.</summary>
    private void Free(AddressInterval range)
    {
        var index = ~_free.BinarySearch(range);
        if (index < _free.Count && range.End + 1 == _free[index].Start)
        {
            range = new AddressInterval(range.Start, _free[index].End);
            _free.RemoveAt(index);
        }

        if (index > 0 && _free[index - 1].End + 1 == range.Start)
        {
            _free[index - 1] = new AddressInterval(_free[index - 1].Start, range.End);
            return;
        }

        _free.Insert(index, range);
    }

    internal static GuestMemoryException Existing(Alloc alloc) => new(GuestMemoryError.ExistingAlloc, $"{alloc} has addresses already.");

    private static GuestMemoryException SizeZero() => new(GuestMemoryError.AllocSizeZero, "A range of no addresses cannot be allocated.");

    private static GuestMemoryException BadAlignment(ulong alignment) =>
        new(GuestMemoryError.BadAlignment, $"The alignment {alignment} is not a power of two, or less than the least one.");
}
