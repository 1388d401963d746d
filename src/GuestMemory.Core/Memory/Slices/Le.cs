using System.Globalization;
using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// An integer that lies in memory with its lowest byte first, whatever the host's order (vm-memory's Le16, Le32, Le64 and LeSize:
/// Le&lt;ushort&gt;, Le&lt;uint&gt;, Le&lt;ulong&gt;, Le&lt;nuint&gt;). For structures that guests and devices share.
/// </summary>
/// <typeparam name="T">The integer.</typeparam>
public readonly struct Le<T> : IEquatable<Le<T>>, IEquatable<T>
    where T : unmanaged, IBinaryInteger<T>
{
    private readonly T _stored;

    private Le(T stored) => _stored = stored;

    /// <summary>The number.</summary>
    public T ToNative() => BitConverter.IsLittleEndian ? _stored : ByteOrder.Reverse(_stored);

    /// <inheritdoc/>
    public bool Equals(Le<T> other) => _stored == other._stored;

    /// <summary>Whether it is this number.</summary>
    public bool Equals(T other) => ToNative() == other;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is Le<T> same ? Equals(same) : obj is T native && Equals(native);

    /// <inheritdoc/>
    public override int GetHashCode() => ToNative().GetHashCode();

    /// <summary>The number in decimal.</summary>
    public override string ToString() => ToNative().ToString(null, CultureInfo.InvariantCulture);

    /// <summary>Stores a number.</summary>
    public static implicit operator Le<T>(T value) => new(BitConverter.IsLittleEndian ? value : ByteOrder.Reverse(value));

    /// <summary>The number.</summary>
    public static implicit operator T(Le<T> value) => value.ToNative();

    /// <summary>Whether two are the same number.</summary>
    public static bool operator ==(Le<T> left, Le<T> right) => left.Equals(right);

    /// <summary>Whether two are different numbers.</summary>
    public static bool operator !=(Le<T> left, Le<T> right) => !left.Equals(right);
}
