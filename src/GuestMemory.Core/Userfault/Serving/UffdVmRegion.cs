namespace GuestMemory.Core.Userfault;

/// <summary>One region of a VM that is served.</summary>
internal sealed class UffdVmRegion(GuestRegionUffdMapping mapping, ulong firstPage)
{
    public readonly ulong Base = mapping.BaseHostVirtAddr;
    public readonly ulong Size = mapping.Size;
    public readonly ulong End = mapping.BaseHostVirtAddr + mapping.Size;
    public readonly ulong Offset = mapping.Offset;
    public readonly ulong PageSize = mapping.PageSize;

    /// <summary>The number of the region's first page among all the VM's pages, of the host's page size.</summary>
    public readonly ulong FirstPage = firstPage;

    /// <summary>The regions of a VM.</summary>
    public static UffdVmRegion[] Of(IReadOnlyList<GuestRegionUffdMapping> mappings)
    {
        var regions = new UffdVmRegion[mappings.Count];
        ulong page = 0;
        for (var i = 0; i < regions.Length; i++)
        {
            regions[i] = new UffdVmRegion(mappings[i], page);
            page += regions[i].PageCount;
        }

        return regions;
    }

    public ulong PageCount => Size / HostPage.Size;

    public ulong PageOf(ulong address) => FirstPage + ((address - Base) / HostPage.Size);

    public ulong AddressOf(ulong page) => Base + ((page - FirstPage) * HostPage.Size);
}
