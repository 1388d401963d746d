namespace GuestMemory.Core.Tests;

/// <summary>Page tables that a test writes, in 2 MiB of memory from 1 MiB on.</summary>
internal sealed class PageTables : IDisposable
{
    public const ulong Root = 0x10_0000;

    private const ulong Present = 1;

    private ulong _next = Root + 0x1000;

    public PageTables() => Memory = GuestMemoryMmap.FromRanges([(new GuestAddress(Root), 0x20_0000)]);

    public GuestMemoryMmap Memory { get; }

    public void Dispose()
    {
        foreach (var region in Memory.Regions) region.Dispose();
    }

    /// <summary>A page of zeros for a table or for data.</summary>
    public ulong Page()
    {
        _next += 0x1000;
        return _next - 0x1000;
    }

    public void Set(ulong table, ulong index, ulong entry) => Memory.WriteObject(new GuestAddress(table + (8 * index)), entry);

    public ulong Get(ulong table, ulong index) => Memory.ReadObject<ulong>(new GuestAddress(table + (8 * index)));

    /// <summary>Maps by entries at these indexes, from the top on; gives the table that holds the last one. Bits beside the address are for each level.</summary>
    public ulong Map(ulong root, ulong tableBits, ulong lastEntry, params ulong[] indexes)
    {
        var table = root;
        foreach (var index in indexes[..^1])
        {
            if ((Get(table, index) & Present) == 0) Set(table, index, Page() | tableBits);
            table = Get(table, index) & 0x000f_ffff_ffff_f000;
        }

        Set(table, indexes[^1], lastEntry);
        return table;
    }
}
