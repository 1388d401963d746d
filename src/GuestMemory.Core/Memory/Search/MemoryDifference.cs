namespace GuestMemory.Core;

/// <summary>A range in which two memories differ.</summary>
/// <param name="Address">The first guest address.</param>
/// <param name="Size">The length in bytes.</param>
/// <param name="DifferentBytes">How many of its bytes are different; all of a range that only one memory has.</param>
/// <param name="Kind">How it differs.</param>
public sealed record MemoryDifference(ulong Address, ulong Size, ulong DifferentBytes, MemoryDifferenceKind Kind)
{
    /// <summary>The last guest address that belongs to the range.</summary>
    public ulong LastAddress => Address + (Size - 1);
}
