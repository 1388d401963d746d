namespace GuestMemory.Core.VmControl;

/// <summary>Memory that a request registered: a slot of its own, or a part of a prepared one.</summary>
/// <param name="Slot">The slot.</param>
public abstract record RegisteredMemory(uint Slot)
{
    /// <summary>A part of a prepared register.</summary>
    /// <param name="Slot">The register's slot.</param>
    /// <param name="Offset">Where in the slot, in bytes.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record FixedMapping(uint Slot, ulong Offset, ulong Size) : RegisteredMemory(Slot);

    /// <summary>A slot of its own.</summary>
    /// <param name="Slot">The slot.</param>
    public sealed record DynamicMapping(uint Slot) : RegisteredMemory(Slot);
}
