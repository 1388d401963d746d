using System.Globalization;
using System.Management.Automation;

namespace GuestMemory.PowerShell.Binding;

/// <summary>Numbers as admins write them: 4096, 0x80000000, 256MiB, 1.5GB.</summary>
internal static class NumberText
{
    private static readonly (string Suffix, int Shift)[] s_units =
    [
        ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50), ("EiB", 60),
        ("KB", 10), ("MB", 20), ("GB", 30), ("TB", 40), ("PB", 50), ("K", 10), ("M", 20), ("G", 30), ("T", 40), ("B", 0),
    ];

    /// <summary>
    /// What was typed or passed, as a number from 0 to 2^64 - 1. A literal keeps its text, so that 0x80000000, which PowerShell
    /// reads as a negative Int32, means what it says; a negative number that was computed is refused.
    /// </summary>
    /// <exception cref="FormatException">It is no such number.</exception>
    public static ulong Parse(object? input)
    {
        var text = input is null ? "" : (input as PSObject)?.ToString() ?? Convert.ToString(input, CultureInfo.InvariantCulture) ?? "";
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        if (text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) && TryText(text, out var literal)) return literal;
        return value switch
        {
            byte or ushort or uint or ulong => Convert.ToUInt64(value, CultureInfo.InvariantCulture),
            sbyte or short or int or long => Convert.ToInt64(value, CultureInfo.InvariantCulture) is var number and >= 0 ? (ulong)number : throw Negative(text),
            float or double or decimal => FromDecimal(Convert.ToDecimal(value, CultureInfo.InvariantCulture), text),
            System.Numerics.BigInteger big when big >= 0 && big <= ulong.MaxValue => (ulong)big,
            Core.GuestAddress address => address.Value,
            string or char => TryText(text, out var parsed) ? parsed : throw NotANumber(text),
            _ => throw NotANumber(text),
        };
    }

    private static bool TryText(string text, out ulong value)
    {
        var number = text.Trim().Replace("_", "", StringComparison.Ordinal);
        var shift = 0;
        foreach (var (suffix, bits) in s_units)
        {
            // In 0x1B the B is a digit.
            if (!number.EndsWith(suffix, StringComparison.OrdinalIgnoreCase) || (suffix.Length == 1 && number.StartsWith("0x", StringComparison.OrdinalIgnoreCase) && char.IsAsciiHexDigit(suffix[0]))) continue;
            number = number[..^suffix.Length].TrimEnd();
            shift = bits;
            break;
        }

        if (number.StartsWith("0x", StringComparison.OrdinalIgnoreCase))
            return ulong.TryParse(number.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value) && Shift(ref value, shift);
        if (ulong.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out value)) return Shift(ref value, shift);
        if (!decimal.TryParse(number, NumberStyles.AllowDecimalPoint | NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var fraction)) return false;
        if (fraction < 0) throw Negative(text);
        try
        {
            value = FromDecimal(fraction * (1UL << shift), text);
            return true;
        }
        catch (Exception exception) when (exception is OverflowException or FormatException)
        {
            return false;
        }
    }

    private static bool Shift(ref ulong value, int bits)
    {
        if (bits != 0 && value > ulong.MaxValue >> bits) return false;
        value <<= bits;
        return true;
    }

    private static ulong FromDecimal(decimal number, string text) =>
        number < 0 ? throw Negative(text)
        : number > ulong.MaxValue || decimal.Truncate(number) != number ? throw NotANumber(text)
        : (ulong)number;

    private static FormatException Negative(string text) =>
        new($"{text} is negative; addresses and sizes are not. A hexadecimal number that was computed or stored as a signed integer loses its sign bit: write it as a literal (0x80000000), with the suffix u or ul, or as a string.");

    private static FormatException NotANumber(string text) =>
        new($"'{text}' is not a whole number from 0 to 2^64 - 1. Write bytes as 4096, 0x1000, 4KiB or 256MiB.");
}
