using System.Globalization;

namespace GuestMemory.Core;

/// <summary>
/// An offset inside one region, in bytes from its start (vm-memory's MemoryRegionAddress). Distinct from
/// <see cref="GuestAddress"/>, so that the two cannot be mixed up; the arithmetic is the same.
/// </summary>
/// <param name="Value">The offset.</param>
public readonly record struct MemoryRegionAddress(ulong Value) : IComparable<MemoryRegionAddress>
{
    /// <summary>This address plus a number of bytes, or null past 2^64 - 1.</summary>
    public MemoryRegionAddress? CheckedAdd(ulong bytes) => Value <= ulong.MaxValue - bytes ? new MemoryRegionAddress(Value + bytes) : null;

    /// <summary>This address minus a number of bytes, or null below 0.</summary>
    public MemoryRegionAddress? CheckedSub(ulong bytes) => Value >= bytes ? new MemoryRegionAddress(Value - bytes) : null;

    /// <summary>This address plus a number of bytes, modulo 2^64, and whether that passed the end.</summary>
    public (MemoryRegionAddress Address, bool Overflowed) OverflowingAdd(ulong bytes) => (new MemoryRegionAddress(unchecked(Value + bytes)), Value > ulong.MaxValue - bytes);

    /// <summary>This address minus a number of bytes, modulo 2^64, and whether that passed 0.</summary>
    public (MemoryRegionAddress Address, bool Overflowed) OverflowingSub(ulong bytes) => (new MemoryRegionAddress(unchecked(Value - bytes)), Value < bytes);

    /// <summary>The bytes from <paramref name="start"/> to this address, or null where it lies below.</summary>
    public ulong? CheckedOffsetFrom(MemoryRegionAddress start) => Value >= start.Value ? Value - start.Value : null;

    /// <summary>The bits of the address that a mask selects, as a number.</summary>
    public ulong Mask(ulong mask) => Value & mask;

    /// <summary>The next address that is a multiple of a power of two, this one included; null past 2^64 - 1.</summary>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="powerOfTwo"/> is none.</exception>
    public MemoryRegionAddress? CheckedAlignUp(ulong powerOfTwo)
    {
        if (!ulong.IsPow2(powerOfTwo)) throw new ArgumentOutOfRangeException(nameof(powerOfTwo), powerOfTwo, "An alignment is a power of two.");
        return CheckedAdd(powerOfTwo - 1) is { } end ? new MemoryRegionAddress(end.Value & ~(powerOfTwo - 1)) : null;
    }

    /// <inheritdoc/>
    public int CompareTo(MemoryRegionAddress other) => Value.CompareTo(other.Value);

    /// <summary>The address in hexadecimal: 0x80000000.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");

    /// <summary>The address so many bytes above.</summary>
    /// <exception cref="OverflowException">It lies past 2^64 - 1.</exception>
    public static MemoryRegionAddress operator +(MemoryRegionAddress address, ulong bytes) => new(checked(address.Value + bytes));

    /// <summary>The address so many bytes below.</summary>
    /// <exception cref="OverflowException">It lies below 0.</exception>
    public static MemoryRegionAddress operator -(MemoryRegionAddress address, ulong bytes) => new(checked(address.Value - bytes));

    /// <summary>The bytes from the right address to the left one.</summary>
    /// <exception cref="OverflowException">The left one lies below the right one.</exception>
    public static ulong operator -(MemoryRegionAddress address, MemoryRegionAddress start) => checked(address.Value - start.Value);

    /// <summary>The address with only the bits of a mask.</summary>
    public static MemoryRegionAddress operator &(MemoryRegionAddress address, ulong mask) => new(address.Value & mask);

    /// <summary>The address with the bits of a number added.</summary>
    public static MemoryRegionAddress operator |(MemoryRegionAddress address, ulong bits) => new(address.Value | bits);

    /// <summary>Whether the left address lies below the right one.</summary>
    public static bool operator <(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value < right.Value;

    /// <summary>Whether the left address lies above the right one.</summary>
    public static bool operator >(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value > right.Value;

    /// <summary>Whether the left address is at most the right one.</summary>
    public static bool operator <=(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value <= right.Value;

    /// <summary>Whether the left address is at least the right one.</summary>
    public static bool operator >=(MemoryRegionAddress left, MemoryRegionAddress right) => left.Value >= right.Value;
}
