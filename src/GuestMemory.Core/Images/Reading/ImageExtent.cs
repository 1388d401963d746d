namespace GuestMemory.Core.Images;

/// <summary>A piece of guest memory in a file.</summary>
/// <param name="Address">The first guest physical address.</param>
/// <param name="Size">The length in bytes.</param>
/// <param name="FileOffset">Where its bytes begin in the file.</param>
/// <param name="FileSize">How many of them the file has; the rest is zeros.</param>
internal readonly record struct ImageExtent(ulong Address, ulong Size, ulong FileOffset, ulong FileSize)
{
    public ulong End => Address + Size;
}
