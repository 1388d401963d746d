using System.Globalization;

namespace GuestMemory.Core;

/// <summary>
/// A guest physical address: a byte number from 0 to 2^64 - 1 (vm-memory's GuestAddress). Distinct from
/// <see cref="MemoryRegionAddress"/>, so that the two cannot be mixed up. The arithmetic is vm-memory's Address trait; upstream's
/// unchecked operations abort in a debug build, the operators here throw instead.
/// </summary>
/// <param name="Value">The raw address.</param>
public readonly record struct GuestAddress(ulong Value) : IComparable<GuestAddress>
{
    /// <summary>
    /// A number that is a guest address already: objects that are shown, such as regions and ranges, have them so. No number becomes a
    /// <see cref="MemoryRegionAddress"/> by itself.
    /// </summary>
    public static implicit operator GuestAddress(ulong value) => new(value);

    /// <summary>This address plus a number of bytes, or null past 2^64 - 1.</summary>
    public GuestAddress? CheckedAdd(ulong bytes) => Value <= ulong.MaxValue - bytes ? new GuestAddress(Value + bytes) : null;

    /// <summary>This address minus a number of bytes, or null below 0.</summary>
    public GuestAddress? CheckedSub(ulong bytes) => Value >= bytes ? new GuestAddress(Value - bytes) : null;

    /// <summary>This address plus a number of bytes, modulo 2^64, and whether that passed the end.</summary>
    public (GuestAddress Address, bool Overflowed) OverflowingAdd(ulong bytes) => (new GuestAddress(unchecked(Value + bytes)), Value > ulong.MaxValue - bytes);

    /// <summary>This address minus a number of bytes, modulo 2^64, and whether that passed 0.</summary>
    public (GuestAddress Address, bool Overflowed) OverflowingSub(ulong bytes) => (new GuestAddress(unchecked(Value - bytes)), Value < bytes);

    /// <summary>The bytes from <paramref name="start"/> to this address, or null where it lies below.</summary>
    public ulong? CheckedOffsetFrom(GuestAddress start) => Value >= start.Value ? Value - start.Value : null;

    /// <summary>The bits of the address that a mask selects, as a number.</summary>
    public ulong Mask(ulong mask) => Value & mask;

    /// <summary>The next address that is a multiple of a power of two, this one included; null past 2^64 - 1.</summary>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="powerOfTwo"/> is none.</exception>
    public GuestAddress? CheckedAlignUp(ulong powerOfTwo)
    {
        if (!ulong.IsPow2(powerOfTwo)) throw new ArgumentOutOfRangeException(nameof(powerOfTwo), powerOfTwo, "An alignment is a power of two.");
        return CheckedAdd(powerOfTwo - 1) is { } end ? new GuestAddress(end.Value & ~(powerOfTwo - 1)) : null;
    }

    /// <inheritdoc/>
    public int CompareTo(GuestAddress other) => Value.CompareTo(other.Value);

    /// <summary>The address in hexadecimal: 0x80000000.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");

    /// <summary>The address so many bytes above.</summary>
    /// <exception cref="OverflowException">It lies past 2^64 - 1.</exception>
    public static GuestAddress operator +(GuestAddress address, ulong bytes) => new(checked(address.Value + bytes));

    /// <summary>The address so many bytes below.</summary>
    /// <exception cref="OverflowException">It lies below 0.</exception>
    public static GuestAddress operator -(GuestAddress address, ulong bytes) => new(checked(address.Value - bytes));

    /// <summary>The bytes from the right address to the left one.</summary>
    /// <exception cref="OverflowException">The left one lies below the right one.</exception>
    public static ulong operator -(GuestAddress address, GuestAddress start) => checked(address.Value - start.Value);

    /// <summary>The address with only the bits of a mask.</summary>
    public static GuestAddress operator &(GuestAddress address, ulong mask) => new(address.Value & mask);

    /// <summary>The address with the bits of a number added.</summary>
    public static GuestAddress operator |(GuestAddress address, ulong bits) => new(address.Value | bits);

    /// <summary>Whether the left address lies below the right one.</summary>
    public static bool operator <(GuestAddress left, GuestAddress right) => left.Value < right.Value;

    /// <summary>Whether the left address lies above the right one.</summary>
    public static bool operator >(GuestAddress left, GuestAddress right) => left.Value > right.Value;

    /// <summary>Whether the left address is at most the right one.</summary>
    public static bool operator <=(GuestAddress left, GuestAddress right) => left.Value <= right.Value;

    /// <summary>Whether the left address is at least the right one.</summary>
    public static bool operator >=(GuestAddress left, GuestAddress right) => left.Value >= right.Value;
}
