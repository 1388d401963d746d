namespace GuestMemory.Core;

/// <summary>Where a pattern was found in guest memory.</summary>
/// <param name="address">The guest physical address of the first byte.</param>
/// <param name="bytes">The bytes that matched; kept, not copied.</param>
/// <param name="context">The match with what stands around it.</param>
/// <param name="region">The name of the region that holds the first byte.</param>
/// <param name="pattern">The pattern.</param>
public sealed class MemoryMatch(ulong address, byte[] bytes, MemoryBlock context, string region, string pattern)
{
    /// <summary>The guest physical address of the first byte.</summary>
    public ulong Address { get; } = address;

    /// <summary>The number of bytes.</summary>
    public ulong Size => (ulong)Bytes.Length;

    /// <summary>The bytes that matched.</summary>
    public byte[] Bytes { get; } = bytes;

    /// <summary>The match with what stands around it, as far as the memory reaches.</summary>
    public MemoryBlock Context { get; } = context;

    /// <summary>The name of the region that holds the first byte.</summary>
    public string Region { get; } = region;

    /// <summary>The pattern that was found.</summary>
    public string Pattern { get; } = pattern;

    /// <summary>The pattern and the address, for debuggers and messages.</summary>
    public override string ToString() => $"'{Pattern}' at 0x{Address:x}";
}
