namespace GuestMemory.Core.Userfault;

/// <summary>One region of a VM that is served.</summary>
internal sealed class UffdVmRegion(GuestRegionUffdMapping mapping, ulong firstPage)
{
    // The usual huge page. A VMM that says its pages are larger is believed when the kernel says the same.
    private const ulong UsualPageSize = 2 << 20;

    public readonly ulong Base = mapping.BaseHostVirtAddr;
    public readonly ulong Size = mapping.Size;
    public readonly ulong End = mapping.BaseHostVirtAddr + mapping.Size;
    public readonly ulong Offset = mapping.Offset;

    /// <summary>The bytes of a page, as the VMM says.</summary>
    public readonly ulong PageSize = mapping.PageSize;

    /// <summary>The number of the region's first page among all the VM's pages, of the host's page size.</summary>
    public readonly ulong FirstPage = firstPage;

    // Written by the VM's service and by the filler, from small to large once.
    private ulong _unit = mapping.PageSize <= UsualPageSize ? mapping.PageSize : HostPage.Size;

    /// <summary>Whether other memory lies at its addresses now, so that no fault is one of its pages.</summary>
    public bool IsLost { get; private init; }

    /// <summary>The bytes that are filled at once at least: a page of the VM's memory.</summary>
    public ulong Unit => Volatile.Read(ref _unit);

    /// <summary>The regions of a VM.</summary>
    /// <param name="mappings">The list that it handed over.</param>
    /// <param name="moves">What it moved since.</param>
    public static UffdVmRegion[] Of(IReadOnlyList<GuestRegionUffdMapping> mappings, UffdMoves? moves = null)
    {
        var regions = new UffdVmRegion[mappings.Count];
        ulong page = 0;
        for (var i = 0; i < regions.Length; i++)
        {
            regions[i] = new UffdVmRegion(mappings[i], page);
            page += regions[i].PageCount;
        }

        foreach (var (from, to, length) in moves?.All ?? []) regions = Move(regions, from, to, length);
        return regions;
    }

    /// <summary>The regions after a move: what lay in the range lies elsewhere, with the same pages; what lay there before is lost.</summary>
    private static UffdVmRegion[] Move(UffdVmRegion[] regions, ulong from, ulong to, ulong length)
    {
        var moved = new List<UffdVmRegion>(regions.Length + 2);
        foreach (var region in regions)
        {
            foreach (var part in region.Split(from, length))
            {
                if (!region.IsLost && part.Base - from < length) moved.Add(part.At(to + (part.Base - from)));
                else moved.AddRange(part.Split(to, length).Select(lost => lost.Base - to < length ? lost.At(lost.Base, isLost: true) : lost));
            }
        }

        return [.. moved];
    }

    public ulong PageCount => Size / HostPage.Size;

    public ulong PageOf(ulong address) => FirstPage + ((address - Base) / HostPage.Size);

    /// <summary>The parts of the region before, in and behind a range.</summary>
    private IEnumerable<UffdVmRegion> Split(ulong start, ulong length)
    {
        var (from, to) = (Math.Max(Base, start), Math.Min(End, start + length));
        if (from >= to || (from == Base && to == End)) return [this];
        return new[] { (Base, from), (from, to), (to, End) }.Where(static part => part.Item1 < part.Item2).Select(part => Part(part.Item1, part.Item2));
    }

    private UffdVmRegion Part(ulong from, ulong to) =>
        new(new GuestRegionUffdMapping(from, to - from, Offset + (from - Base), PageSizeOf(from | to)), PageOf(from)) { IsLost = IsLost };

    private UffdVmRegion At(ulong start, bool isLost = false) => new(new GuestRegionUffdMapping(start, Size, Offset, PageSizeOf(start | Size)), FirstPage) { IsLost = isLost };

    // Huge pages move whole; memory that moves in smaller parts has none.
    private ulong PageSizeOf(ulong bounds) => HostPage.IsAligned(bounds, PageSize) ? PageSize : HostPage.Size;

    public ulong AddressOf(ulong page) => Base + ((page - FirstPage) * HostPage.Size);

    /// <summary>The kernel fills nothing smaller than what the VMM calls a page here (EINVAL); false where that was known.</summary>
    public bool TryWiden()
    {
        if (Unit == PageSize) return false;
        Volatile.Write(ref _unit, PageSize);
        return true;
    }
}
