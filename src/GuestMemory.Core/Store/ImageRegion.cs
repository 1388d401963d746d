namespace GuestMemory.Core.Store;

/// <summary>A region of a stored image.</summary>
/// <param name="GuestAddress">Its first guest physical address.</param>
/// <param name="Size">Its length in bytes.</param>
public readonly record struct ImageRegion(ulong GuestAddress, ulong Size);
