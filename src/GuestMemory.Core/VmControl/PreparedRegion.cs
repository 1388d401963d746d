namespace GuestMemory.Core.VmControl;

/// <summary>A PCI register whose addresses are one slot already.</summary>
/// <param name="GuestAddress">The guest physical address of its first byte.</param>
/// <param name="Slot">The slot.</param>
public sealed record PreparedRegion(ulong GuestAddress, uint Slot);
