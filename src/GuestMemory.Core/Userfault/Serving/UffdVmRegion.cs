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

    /// <summary>The bytes that are filled at once at least: a page of the VM's memory.</summary>
    public ulong Unit => Volatile.Read(ref _unit);

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

    /// <summary>The kernel fills nothing smaller than what the VMM calls a page here (EINVAL); false where that was known.</summary>
    public bool TryWiden()
    {
        if (Unit == PageSize) return false;
        Volatile.Write(ref _unit, PageSize);
        return true;
    }
}
