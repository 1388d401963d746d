namespace GuestMemory.Core.VhostUser;

/// <summary>A piece of guest memory in a descriptor chain; all of it is mapped.</summary>
/// <param name="Address">The guest address of the first byte.</param>
/// <param name="Length">The bytes; 1 or more.</param>
public readonly record struct DescriptorBuffer(GuestAddress Address, uint Length);
