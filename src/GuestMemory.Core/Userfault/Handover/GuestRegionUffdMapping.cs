namespace GuestMemory.Core.Userfault;

/// <summary>
/// Where a region of a VM lies in the VMM's address space, and where its bytes stand in the memory image: what a VMM tells a
/// page-fault handler (Firecracker's GuestRegionUffdMapping). All numbers are bytes.
/// </summary>
/// <param name="BaseHostVirtAddr">The region's first address in the VMM process. Fault addresses refer to it.</param>
/// <param name="Size">The region's length.</param>
/// <param name="Offset">Where its bytes start in the memory image.</param>
/// <param name="PageSize">The size of the pages that faults are answered with: 4096, or 2097152 for 2 MiB huge pages.</param>
public sealed record GuestRegionUffdMapping(ulong BaseHostVirtAddr, ulong Size, ulong Offset, ulong PageSize)
{
    /// <summary>The page size again, in <em>bytes</em>: upstream's member has the wrong name and stays for old handlers.</summary>
    public ulong PageSizeKib => PageSize;

    /// <summary>Whether an address of the VMM process lies in the region.</summary>
    public bool Contains(ulong address) => address >= BaseHostVirtAddr && address - BaseHostVirtAddr < Size;
}
