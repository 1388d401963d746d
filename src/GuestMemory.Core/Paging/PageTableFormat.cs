namespace GuestMemory.Core.Paging;

/// <summary>How a guest's page tables are laid out, by the Intel SDM (volume 3, chapter 5) and the Arm ARM (chapter D8).</summary>
public sealed record PageTableFormat
{
    private static readonly string[] s_names = ["PT", "PD", "PDPT", "PML4", "PML5"];

    private PageTableFormat(GuestArchitecture architecture, int virtualAddressBits, int pageShift)
    {
        Architecture = architecture;
        VirtualAddressBits = virtualAddressBits;
        PageShift = pageShift;
        Levels = (virtualAddressBits - pageShift + IndexBits - 1) / IndexBits;
    }

    /// <summary>The architecture.</summary>
    public GuestArchitecture Architecture { get; }

    /// <summary>The bits of a virtual address that count, the sign among them for x86-64.</summary>
    public int VirtualAddressBits { get; }

    /// <summary>How many tables a walk reads at most.</summary>
    public int Levels { get; }

    /// <summary>The bytes of the smallest page, and of a table.</summary>
    public ulong PageSize => 1UL << PageShift;

    internal int PageShift { get; }

    internal int IndexBits => PageShift - 3;

    /// <summary>Addresses of aarch64 with 52 bits, which pages of 4 and of 16 KiB keep in another place (FEAT_LPA2).</summary>
    private bool IsWide => PageShift < 16 && VirtualAddressBits > 48;

    /// <summary>Tables of x86-64 with 4 or 5 levels.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Another number.</exception>
    public static PageTableFormat X64(int levels = 4)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(levels, 4);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(levels, 5);
        return new PageTableFormat(GuestArchitecture.X64, levels == 4 ? 48 : 57, 12);
    }

    /// <summary>Tables of aarch64.</summary>
    /// <param name="virtualAddressBits">64 - TCR_EL1.T1SZ (or T0SZ): 36 to 52.</param>
    /// <param name="pageSize">The granule: 4096, 16384 or 65536 bytes.</param>
    /// <exception cref="ArgumentOutOfRangeException">Other values.</exception>
    public static PageTableFormat Arm64(int virtualAddressBits = 48, int pageSize = 4096)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(virtualAddressBits, 36);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(virtualAddressBits, 52);
        if (pageSize is not (4096 or 16384 or 65536)) throw new ArgumentOutOfRangeException(nameof(pageSize), pageSize, "The granule is 4096, 16384 or 65536 bytes.");
        return new PageTableFormat(GuestArchitecture.Arm64, virtualAddressBits, int.Log2(pageSize));
    }

    /// <summary>The formats of an architecture that a guest may use, those of most guests first; for aarch64 with pages of 4 KiB.</summary>
    public static IReadOnlyList<PageTableFormat> All(GuestArchitecture architecture) => architecture == GuestArchitecture.X64 ? [X64(4), X64(5)] : [Arm64(48), Arm64(39), Arm64(52)];

    /// <summary>Whether tables of this format can map a virtual address: all bits above those that count are equal.</summary>
    public bool IsCanonical(ulong virtualAddress)
    {
        // The sign is the uppermost bit that counts (x86-64), or the lowest that does not (aarch64).
        var top = (long)virtualAddress >> (Architecture == GuestArchitecture.X64 ? VirtualAddressBits - 1 : VirtualAddressBits);
        return top is 0 or -1;
    }

    /// <summary>"x86-64, 4 levels".</summary>
    public override string ToString() => $"{(Architecture == GuestArchitecture.X64 ? "x86-64" : $"aarch64, {VirtualAddressBits} bits, pages of {PageSize >> 10} KiB")}, {Levels} levels";

    /// <summary>The table of the top level, of what a register holds: CR3, or TTBR0_EL1 or TTBR1_EL1, without what else is in it.</summary>
    internal ulong Root(ulong register)
    {
        if (Architecture == GuestArchitecture.X64) return register & 0x000f_ffff_ffff_f000;
        // A small table is aligned to its size only.
        var table = 8UL << (VirtualAddressBits - Shift(Levels - 1));
        return register & 0x0000_ffff_ffff_fffe & ~(Math.Max(table, 64) - 1);
    }

    internal int Shift(int level) => PageShift + (level * IndexBits);

    /// <summary>The entry of an address in a table of a level; 0 is the level of the smallest pages.</summary>
    internal ulong Index(ulong virtualAddress, int level) =>
        virtualAddress >> Shift(level) & ((1UL << (level == Levels - 1 ? VirtualAddressBits - Shift(level) : IndexBits)) - 1);

    /// <summary>What the architecture calls a table of a level.</summary>
    internal string Name(int level) => Architecture == GuestArchitecture.X64 ? s_names[level] : $"table of level {3 - level}";

    /// <summary>What an entry says. Null: nothing is mapped. An entry with bits that must not be set is invalid.</summary>
    internal Entry? Decode(ulong entry, int level)
    {
        if ((entry & 1) == 0) return null;
        return Architecture == GuestArchitecture.X64 ? DecodeX64(entry, level) : DecodeArm64(entry, level);
    }

    private Entry DecodeX64(ulong entry, int level)
    {
        var address = entry & 0x000f_ffff_ffff_f000;
        const ulong Large = 1 << 7;
        if (level > 0 && (entry & Large) == 0) return new Entry(address, IsPage: false, IsValid: true);
        if (level == 0) return new Entry(address, IsPage: true, IsValid: true);
        // Bit 12 chooses the memory type of a large page; those between it and the address are reserved.
        var size = 1UL << Shift(level);
        var reserved = address & (size - 1) & ~0x1000UL;
        return new Entry(address & ~(size - 1), IsPage: true, IsValid: level <= 2 && reserved == 0);
    }

    private Entry DecodeArm64(ulong entry, int level)
    {
        var address = entry & 0x0000_ffff_ffff_ffff & ~(PageSize - 1);
        if (PageShift == 16) address |= (entry & 0xf000) << 36;
        else if (IsWide) address |= (entry & 0x0003_0000_0000_0000) | (entry & 0x300) << 42;
        var isBlock = (entry & 2) == 0;
        if (!isBlock) return new Entry(address, IsPage: level == 0, IsValid: true);
        // Blocks: 2 MiB and 1 GiB of 4 KiB, 32 MiB of 16 KiB, 512 MiB of 64 KiB; with addresses of 52 bits the level above, too.
        var highest = (PageShift, IsWide) switch { (12, false) => 2, (12, true) => 3, (14, false) => 1, (14, true) => 2, _ => VirtualAddressBits > 48 ? 2 : 1 };
        return new Entry(address & ~((1UL << Shift(level)) - 1), IsPage: true, IsValid: level > 0 && level <= highest);
    }

    /// <param name="Address">The next table, or the page.</param>
    /// <param name="IsPage">Whether it is a page.</param>
    /// <param name="IsValid">Whether the entry has only bits that it may have.</param>
    internal readonly record struct Entry(ulong Address, bool IsPage, bool IsValid);
}
