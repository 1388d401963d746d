namespace GuestMemory.Core;

/// <summary>Which stores of a guest an eventfd hears of (crosvm's Datamatch): by their length, and perhaps by their value.</summary>
public readonly record struct Datamatch
{
    private Datamatch(uint length, ulong? value)
    {
        Length = length;
        Value = value;
    }

    /// <summary>Stores of any length and value; also the default.</summary>
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
}
