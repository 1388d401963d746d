using System.Globalization;

namespace GuestMemory.Core;

/// <summary>
/// A guest physical address: a byte number from 0 to 2^64 - 1 (vm-memory's GuestAddress). Distinct from
/// <see cref="MemoryRegionAddress"/>, so that the two cannot be mixed up.
/// </summary>
/// <param name="Value">The raw address.</param>
public readonly record struct GuestAddress(ulong Value) : IComparable<GuestAddress>
{
    /// <summary>This address plus a number of bytes, or null past 2^64 - 1.</summary>
    public GuestAddress? CheckedAdd(ulong bytes) => Value <= ulong.MaxValue - bytes ? new GuestAddress(Value + bytes) : null;

    /// <summary>This address minus a number of bytes, or null below 0.</summary>
    public GuestAddress? CheckedSub(ulong bytes) => Value >= bytes ? new GuestAddress(Value - bytes) : null;

    /// <summary>The bytes from <paramref name="start"/> to this address, or null where it lies below.</summary>
    public ulong? CheckedOffsetFrom(GuestAddress start) => Value >= start.Value ? Value - start.Value : null;

    /// <inheritdoc/>
    public int CompareTo(GuestAddress other) => Value.CompareTo(other.Value);

    /// <summary>The address in hexadecimal: 0x80000000.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");

    /// <summary>Whether the left address lies below the right one.</summary>
    public static bool operator <(GuestAddress left, GuestAddress right) => left.Value < right.Value;

    /// <summary>Whether the left address lies above the right one.</summary>
    public static bool operator >(GuestAddress left, GuestAddress right) => left.Value > right.Value;

    /// <summary>Whether the left address is at most the right one.</summary>
    public static bool operator <=(GuestAddress left, GuestAddress right) => left.Value <= right.Value;

    /// <summary>Whether the left address is at least the right one.</summary>
    public static bool operator >=(GuestAddress left, GuestAddress right) => left.Value >= right.Value;
}
