using System.Globalization;
using System.Numerics;

namespace GuestMemory.Core;

/// <summary>
/// An integer that lies in memory with its highest byte first, whatever the host's order (vm-memory's Be16, Be32, Be64 and BeSize:
/// Be&lt;ushort&gt;, Be&lt;uint&gt;, Be&lt;ulong&gt;, Be&lt;nuint&gt;). For structures that guests and devices share.
/// </summary>
/// <typeparam name="T">The integer.</typeparam>
public readonly struct Be<T> : IEquatable<Be<T>>, IEquatable<T>
    where T : unmanaged, IBinaryInteger<T>
{
    private readonly T _stored;

    private Be(T stored) => _stored = stored;

    /// <summary>The number.</summary>
    public T ToNative() => BitConverter.IsLittleEndian ? ByteOrder.Reverse(_stored) : _stored;

    /// <inheritdoc/>
    public bool Equals(Be<T> other) => _stored == other._stored;

    /// <summary>Whether it is this number.</summary>
    public bool Equals(T other) => ToNative() == other;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is Be<T> same ? Equals(same) : obj is T native && Equals(native);

    /// <inheritdoc/>
    public override int GetHashCode() => ToNative().GetHashCode();

    /// <summary>The number in decimal.</summary>
    public override string ToString() => ToNative().ToString(null, CultureInfo.InvariantCulture);

    /// <summary>Stores a number.</summary>
    public static implicit operator Be<T>(T value) => new(BitConverter.IsLittleEndian ? ByteOrder.Reverse(value) : value);

    /// <summary>The number.</summary>
    public static implicit operator T(Be<T> value) => value.ToNative();

    /// <summary>Whether two are the same number.</summary>
    public static bool operator ==(Be<T> left, Be<T> right) => left.Equals(right);

    /// <summary>Whether two are different numbers.</summary>
    public static bool operator !=(Be<T> left, Be<T> right) => !left.Equals(right);
}
