using System.Globalization;

namespace GuestMemory.Core.Kvm;

/// <summary>The stores of a guest that signal an eventfd (crosvm's Datamatch): of one length or any, of one value or any.</summary>
public readonly record struct Datamatch
{
    private Datamatch(uint length, ulong? value)
    {
        Length = length;
        Value = value;
    }

    /// <summary>Stores of any length and value; the default.</summary>
    public static Datamatch AnyLength => default;

    /// <summary>The length in bytes: 1, 2, 4 or 8; 0 for any.</summary>
    public uint Length { get; }

    /// <summary>The value that must be stored; null for any.</summary>
    public ulong? Value { get; }

    /// <summary>Stores of one byte.</summary>
    public static Datamatch U8(byte? value = null) => new(1, value);

    /// <summary>Stores of two bytes.</summary>
    public static Datamatch U16(ushort? value = null) => new(2, value);

    /// <summary>Stores of four bytes.</summary>
    public static Datamatch U32(uint? value = null) => new(4, value);

    /// <summary>Stores of eight bytes.</summary>
    public static Datamatch U64(ulong? value = null) => new(8, value);

    /// <summary>Reads the text that ToString gives: AnyLength, or U8, U16, U32 or U64, and perhaps a value: U32:5, U32:0xdeadbeef.</summary>
    /// <exception cref="FormatException">The text is none of these, or the value does not fit the length.</exception>
    public static Datamatch Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var (name, rest) = text.Split(':', 2) is [var first, var second] ? (first, second) : (text, null);
        ulong? value = rest is null ? null : Number(rest) ?? throw Bad(text);
        return (name.ToUpperInvariant(), value) switch
        {
            ("ANYLENGTH", null) => AnyLength,
            ("U8", null or <= byte.MaxValue) => U8((byte?)value),
            ("U16", null or <= ushort.MaxValue) => U16((ushort?)value),
            ("U32", null or <= uint.MaxValue) => U32((uint?)value),
            ("U64", _) => U64(value),
            _ => throw Bad(text),
        };
    }

    /// <summary>The text that <see cref="Parse"/> reads.</summary>
    public override string ToString() => Length == 0 ? "AnyLength" : Value is { } value ? $"U{Length * 8}:0x{value:x}" : $"U{Length * 8}";

    private static ulong? Number(string text) =>
        text.StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? ulong.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var hexadecimal) ? hexadecimal : null
            : ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : null;

    private static FormatException Bad(string text) =>
        new($"'{text}' is not a datamatch. Write AnyLength, or the length of the store, U8, U16, U32 or U64, and perhaps its value: U32:0xdeadbeef.");
}
