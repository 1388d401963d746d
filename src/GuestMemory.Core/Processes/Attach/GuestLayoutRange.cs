namespace GuestMemory.Core.Processes;

/// <summary>Where a part of a VMM's memory lies in its guest's address space.</summary>
/// <param name="GuestAddress">The guest physical address of the first byte.</param>
/// <param name="Size">How many bytes, at least 1.</param>
/// <param name="ProcessAddress">Where they are in the VMM's own address space; null where they follow those of the range before, or are to be found by their size.</param>
public sealed record GuestLayoutRange(ulong GuestAddress, ulong Size, ulong? ProcessAddress = null)
{
    /// <summary>"0x0+0x10000000", and "@0x7f0000000000" where the place in the process is known.</summary>
    public override string ToString() => $"0x{GuestAddress:x}+0x{Size:x}{(ProcessAddress is { } address ? $"@0x{address:x}" : "")}";
}
