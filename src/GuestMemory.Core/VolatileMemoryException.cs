namespace GuestMemory.Core;

/// <summary>An access that leaves its slice, or cannot be done at its address (vm-memory's volatile_memory::Error).</summary>
public sealed class VolatileMemoryException : GuestMemoryException
{
    private VolatileMemoryException(GuestMemoryError error, string message)
        : base(error, message)
    {
    }

    /// <summary>What was to be added to <see cref="GuestMemoryException.Address"/>, in bytes (Overflow), or the number of elements (TooBig).</summary>
    public ulong Count { get; private init; }

    /// <summary>The size of an element (TooBig) or the alignment that is needed (Misaligned), in bytes.</summary>
    public ulong Unit { get; private init; }

    internal static VolatileMemoryException OutOfBounds(ulong address) =>
        new(GuestMemoryError.OutOfBounds, $"The address 0x{address:x} is out of bounds.") { Address = address };

    internal static VolatileMemoryException Overflow(ulong start, ulong offset) =>
        new(GuestMemoryError.Overflow, $"The address 0x{start:x} plus 0x{offset:x} passes 2^64 - 1.") { Address = start, Count = offset };

    internal static VolatileMemoryException TooBig(ulong count, ulong elementSize) =>
        new(GuestMemoryError.TooBig, $"{count} elements of {elementSize} bytes do not fit in any memory.") { Count = count, Unit = elementSize };

    internal static VolatileMemoryException Misaligned(ulong address, ulong alignment) =>
        new(GuestMemoryError.Misaligned, $"The address 0x{address:x} is not a multiple of {alignment}.") { Address = address, Unit = alignment };
}
