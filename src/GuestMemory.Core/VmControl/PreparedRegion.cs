namespace GuestMemory.Core.VmControl;

/// <summary>A prepared PCI register: its addresses are one slot.</summary>
/// <param name="GuestAddress">The guest physical address of its first byte.</param>
/// <param name="Slot">The slot.</param>
public sealed record PreparedRegion(ulong GuestAddress, uint Slot);
