using GuestMemory.Core;

namespace SnapshotRestore;

/// <summary>The regions of one guest, unmapped together.</summary>
internal sealed class Guest : IDisposable
{
    private readonly List<GuestRegionMmap> _regions = [];

    /// <param name="size">The bytes in all.</param>
    /// <param name="hole">How many of them lie below the hole; the rest starts at 4 GiB.</param>
    /// <param name="describe">Describes the mapping of so many bytes, from an offset in the image on.</param>
    public Guest(ulong size, ulong hole, Func<ulong, ulong, MmapRegionBuilder> describe)
    {
        var low = Math.Min(size, hole);
        try
        {
            _regions.Add(new GuestRegionMmap(describe(low, 0).Build(), new GuestAddress(0), "low"));
            if (low < size) _regions.Add(new GuestRegionMmap(describe(size - low, low).Build(), new GuestAddress(1UL << 32), "high"));
            Memory = GuestMemoryMmap.FromRegions(_regions);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public GuestMemoryMmap Memory { get; }

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
    }
}
