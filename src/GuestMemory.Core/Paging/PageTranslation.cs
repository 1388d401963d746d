namespace GuestMemory.Core.Paging;

/// <summary>Where a virtual address lies in a guest's memory.</summary>
/// <param name="VirtualAddress">The virtual address.</param>
/// <param name="Address">The guest physical address that it is mapped to.</param>
/// <param name="PageSize">The bytes of the page that maps it: 4 KiB, 2 MiB or 1 GiB; other granules of aarch64 have other sizes.</param>
public sealed record PageTranslation(ulong VirtualAddress, ulong Address, ulong PageSize)
{
    /// <summary>How many bytes from the address on the page maps.</summary>
    internal ulong Rest => PageSize - (Address & (PageSize - 1));
}
