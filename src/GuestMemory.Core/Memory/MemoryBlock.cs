namespace GuestMemory.Core;

/// <summary>Bytes that were read from a guest, with the guest physical address they were read from.</summary>
/// <param name="address">The guest physical address of the first byte.</param>
/// <param name="bytes">The bytes; kept, not copied.</param>
public sealed class MemoryBlock(ulong address, byte[] bytes)
{
    /// <summary>The guest physical address of the first byte.</summary>
    public ulong Address { get; } = address;

    /// <summary>The number of bytes.</summary>
    public ulong Size => (ulong)Bytes.Length;

    /// <summary>The bytes.</summary>
    public byte[] Bytes { get; } = bytes;

    /// <summary>The range, for debuggers and messages: "0x10 bytes at 0x80000000".</summary>
    public override string ToString() => $"0x{Size:x} bytes at 0x{Address:x}";
}
