using System.Globalization;

namespace GuestMemory.Core;

/// <summary>
/// An offset inside one region, in bytes from its start (vm-memory's MemoryRegionAddress). Distinct from
/// <see cref="GuestAddress"/>, so that the two cannot be mixed up.
/// </summary>
/// <param name="Value">The offset.</param>
public readonly record struct MemoryRegionAddress(ulong Value) : IComparable<MemoryRegionAddress>
{
    /// <summary>This address plus a number of bytes, or null past 2^64 - 1.</summary>
    public MemoryRegionAddress? CheckedAdd(ulong bytes) => Value <= ulong.MaxValue - bytes ? new MemoryRegionAddress(Value + bytes) : null;

    /// <summary>This address minus a number of bytes, or null below 0.</summary>
    public MemoryRegionAddress? CheckedSub(ulong bytes) => Value >= bytes ? new MemoryRegionAddress(Value - bytes) : null;

    /// <summary>The bytes from <paramref name="start"/> to this address, or null where it lies below.</summary>
    public ulong? CheckedOffsetFrom(MemoryRegionAddress start) => Value >= start.Value ? Value - start.Value : null;

    /// <inheritdoc/>
    public int CompareTo(MemoryRegionAddress other) => Value.CompareTo(other.Value);

    /// <summary>The address in hexadecimal: 0x80000000.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");

    /// <summary>Whether the left address lies below the right one.</summary>
    public static bool operator <(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value < right.Value;

    /// <summary>Whether the left address lies above the right one.</summary>
    public static bool operator >(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value > right.Value;

    /// <summary>Whether the left address is at most the right one.</summary>
    public static bool operator <=(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value <= right.Value;

    /// <summary>Whether the left address is at least the right one.</summary>
    public static bool operator >=(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value >= right.Value;
}
