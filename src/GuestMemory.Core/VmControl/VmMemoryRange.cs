namespace GuestMemory.Core.VmControl;

/// <summary>Guest memory that a balloon takes or gives back; in JSON <c>[address,size]</c>.</summary>
/// <param name="Address">The first guest physical address.</param>
/// <param name="Size">The bytes.</param>
public readonly record struct VmMemoryRange(ulong Address, ulong Size);
