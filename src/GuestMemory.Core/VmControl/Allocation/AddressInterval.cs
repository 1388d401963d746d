using System.Globalization;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// The addresses from a first to a last one, both included, which pools and allocations are made of (crosvm's
/// <c>resources::AddressRange</c>; here <see cref="AddressRange"/> is a run of dirty pages). It may be empty, and it may
/// hold all 2^64 addresses.
/// </summary>
/// <param name="start">The first address.</param>
/// <param name="end">The last address; the range is empty where it lies below the first.</param>
public readonly struct AddressInterval(ulong start, ulong end) : IEquatable<AddressInterval>, IComparable<AddressInterval>
{
    /// <summary>The range without addresses, as upstream writes it: 1 to 0.</summary>
    public static AddressInterval Empty { get; } = new(1, 0);

    /// <summary>The first address.</summary>
    public ulong Start { get; } = start;

    /// <summary>The last address.</summary>
    public ulong End { get; } = end;

    /// <summary>Whether there is no address in it.</summary>
    public bool IsEmpty => End < Start;

    /// <summary>How many addresses it has; null for all 2^64, which no number holds.</summary>
    public ulong? Length => IsEmpty ? 0 : End - Start == ulong.MaxValue ? null : End - Start + 1;

    /// <summary>The range of <paramref name="size"/> addresses from <paramref name="start"/>, empty for 0; null where it would pass 2^64 - 1.</summary>
    public static AddressInterval? FromStartAndSize(ulong start, ulong size)
    {
        if (size == 0) return Empty;
        return start <= ulong.MaxValue - (size - 1) ? new AddressInterval(start, start + (size - 1)) : null;
    }

    /// <summary>Whether an address lies in the range.</summary>
    public bool Contains(ulong address) => address >= Start && address <= End;

    /// <summary>Whether another range lies wholly in this one. An empty one lies in none.</summary>
    public bool Contains(AddressInterval other) => !other.IsEmpty && other.Start >= Start && other.End <= End;

    /// <summary>Whether the two share an address.</summary>
    public bool Overlaps(AddressInterval other) => !Intersect(other).IsEmpty;

    /// <summary>The addresses that both have.</summary>
    public AddressInterval Intersect(AddressInterval other)
    {
        var common = new AddressInterval(Math.Max(Start, other.Start), Math.Min(End, other.End));
        return common.IsEmpty || IsEmpty || other.IsEmpty ? Empty : common;
    }

    /// <summary>The parts of this range that another does not cover: the part before it and the part after it.</summary>
    public (AddressInterval Before, AddressInterval After) NonOverlappingRanges(AddressInterval other)
    {
        var before = other.Start == 0 ? Empty : new AddressInterval(Start, Math.Min(End, other.Start - 1));
        var after = other.End == ulong.MaxValue ? Empty : new AddressInterval(Math.Max(Start, other.End + 1), End);
        if (other.IsEmpty) return (this, Empty);
        return (before.IsEmpty ? Empty : before, after.IsEmpty ? Empty : after);
    }

    /// <summary>The part below an address, and the part from it on; the whole and nothing where the address does not cut the range.</summary>
    public (AddressInterval Below, AddressInterval From) SplitAt(ulong address) =>
        address <= Start || address > End ? (this, Empty) : (new AddressInterval(Start, address - 1), new AddressInterval(address, End));

    /// <summary>Empty ranges are equal, and come before all others; then the first address decides, then the last.</summary>
    public int CompareTo(AddressInterval other)
    {
        if (IsEmpty || other.IsEmpty) return other.IsEmpty.CompareTo(IsEmpty);
        var order = Start.CompareTo(other.Start);
        return order != 0 ? order : End.CompareTo(other.End);
    }

    /// <inheritdoc/>
    public bool Equals(AddressInterval other) => CompareTo(other) == 0;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is AddressInterval other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => IsEmpty ? 0 : HashCode.Combine(Start, End);

    /// <summary>"0x1000..=0x1fff", or "empty".</summary>
    public override string ToString() => IsEmpty ? "empty" : string.Create(CultureInfo.InvariantCulture, $"0x{Start:x}..=0x{End:x}");

    /// <summary>Whether both have the same addresses.</summary>
    public static bool operator ==(AddressInterval left, AddressInterval right) => left.Equals(right);

    /// <summary>Whether one has an address that the other has not.</summary>
    public static bool operator !=(AddressInterval left, AddressInterval right) => !left.Equals(right);

    /// <summary>Whether the left one comes first.</summary>
    public static bool operator <(AddressInterval left, AddressInterval right) => left.CompareTo(right) < 0;

    /// <summary>Whether the right one comes first.</summary>
    public static bool operator >(AddressInterval left, AddressInterval right) => left.CompareTo(right) > 0;

    /// <summary>Whether the right one does not come first.</summary>
    public static bool operator <=(AddressInterval left, AddressInterval right) => left.CompareTo(right) <= 0;

    /// <summary>Whether the left one does not come first.</summary>
    public static bool operator >=(AddressInterval left, AddressInterval right) => left.CompareTo(right) >= 0;
}
