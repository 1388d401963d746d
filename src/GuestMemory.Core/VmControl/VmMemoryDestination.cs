using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>Where in the guest a request puts memory (crosvm's <c>VmMemoryDestination</c>).</summary>
public abstract record VmMemoryDestination
{
    private VmMemoryDestination()
    {
    }

    /// <summary>An offset into a PCI register whose addresses are allocated.</summary>
    /// <param name="Alloc">The register: <see cref="Alloc.PciBar"/>.</param>
    /// <param name="Offset">The bytes from its first address.</param>
    public sealed record ExistingAllocation([property: JsonPropertyName("allocation")] Alloc Alloc, ulong Offset) : VmMemoryDestination;

    /// <summary>A guest physical address; only the VM checks it.</summary>
    /// <param name="Address">The address of the first byte.</param>
    public sealed record GuestPhysicalAddress(ulong Address) : VmMemoryDestination;

    /// <summary>The guest physical address.</summary>
    /// <exception cref="SyscallException">EINVAL: the register is unknown, or the range does not lie in it.</exception>
    public ulong Allocate(SystemAllocator allocator, ulong size)
    {
        ArgumentNullException.ThrowIfNull(allocator);
        switch (this)
        {
            case GuestPhysicalAddress there:
                return there.Address;
            case ExistingAllocation existing when allocator.Mmio.TryAddressFromPciOffset(existing.Alloc, existing.Offset, size, out var range) is null:
                return range.Start;
            default:
                throw new SyscallException("address_from_pci_offset", Errno.EINVAL, $"Finding {size} bytes at {this}");
        }
    }
}
