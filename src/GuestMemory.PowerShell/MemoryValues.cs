using System.Globalization;
using System.Management.Automation;
using System.Numerics;
using System.Runtime.InteropServices;
using System.Text;
using GuestMemory.Core;

namespace GuestMemory.PowerShell;

/// <summary>Types of values in memory, by their .NET names.</summary>
public enum MemoryValueType
{
    /// <summary>8 bits, unsigned.</summary>
    Byte,
    /// <summary>8 bits, signed.</summary>
    SByte,
    /// <summary>16 bits, signed.</summary>
    Int16,
    /// <summary>16 bits, unsigned.</summary>
    UInt16,
    /// <summary>32 bits, signed.</summary>
    Int32,
    /// <summary>32 bits, unsigned.</summary>
    UInt32,
    /// <summary>64 bits, signed.</summary>
    Int64,
    /// <summary>64 bits, unsigned.</summary>
    UInt64,
    /// <summary>128 bits, signed.</summary>
    Int128,
    /// <summary>128 bits, unsigned.</summary>
    UInt128,
    /// <summary>16 bits, IEEE 754.</summary>
    Half,
    /// <summary>32 bits, IEEE 754.</summary>
    Single,
    /// <summary>64 bits, IEEE 754.</summary>
    Double,
}

/// <summary>Byte orders.</summary>
public enum Endianness
{
    /// <summary>The lowest byte first, as on x86-64 and (as a rule) aarch64.</summary>
    Little,
    /// <summary>The highest byte first.</summary>
    Big,
}

/// <summary>Values of the pipeline to and from bytes.</summary>
internal static class MemoryValues
{
    public static int SizeOf(MemoryValueType type) => type switch
    {
        MemoryValueType.Byte or MemoryValueType.SByte => 1,
        MemoryValueType.Int16 or MemoryValueType.UInt16 or MemoryValueType.Half => 2,
        MemoryValueType.Int32 or MemoryValueType.UInt32 or MemoryValueType.Single => 4,
        MemoryValueType.Int128 or MemoryValueType.UInt128 => 16,
        _ => 8,
    };

    public static IEnumerable<object> Decode(byte[] bytes, MemoryValueType type, Endianness endian)
    {
        var size = SizeOf(type);
        if (endian == Endianness.Big)
        {
            for (var at = 0; at < bytes.Length; at += size) Array.Reverse(bytes, at, size);
        }

        for (var at = 0; at < bytes.Length; at += size) yield return Read(bytes.AsSpan(at, size), type);
    }

    public static byte[] Encode(object[] values, MemoryValueType? type, Endianness endian, Encoding encoding)
    {
        using var output = new MemoryStream();
        foreach (var item in values)
        {
            var value = item is PSObject wrapped ? wrapped.BaseObject : item;
            if (value is string or char && type is null)
            {
                output.Write(encoding.GetBytes(value.ToString()!));
                continue;
            }

            var bytes = Number(item, value, type ?? TypeOf(value));
            if (endian == Endianness.Big) Array.Reverse(bytes);
            output.Write(bytes);
        }

        return output.ToArray();
    }

    private static object Read(ReadOnlySpan<byte> bytes, MemoryValueType type) => type switch
    {
        MemoryValueType.Byte => (object)bytes[0],   // or the arms would all become double
        MemoryValueType.SByte => (sbyte)bytes[0],
        MemoryValueType.Int16 => MemoryMarshal.Read<short>(bytes),
        MemoryValueType.UInt16 => MemoryMarshal.Read<ushort>(bytes),
        MemoryValueType.Int32 => MemoryMarshal.Read<int>(bytes),
        MemoryValueType.UInt32 => MemoryMarshal.Read<uint>(bytes),
        MemoryValueType.Int64 => MemoryMarshal.Read<long>(bytes),
        MemoryValueType.UInt64 => MemoryMarshal.Read<ulong>(bytes),
        MemoryValueType.Int128 => MemoryMarshal.Read<Int128>(bytes),
        MemoryValueType.UInt128 => MemoryMarshal.Read<UInt128>(bytes),
        MemoryValueType.Half => MemoryMarshal.Read<Half>(bytes),
        MemoryValueType.Single => MemoryMarshal.Read<float>(bytes),
        _ => MemoryMarshal.Read<double>(bytes),
    };

    private static MemoryValueType TypeOf(object? value) => Enum.TryParse<MemoryValueType>(value?.GetType().Name, out var type)
        ? type
        : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A value of type {value?.GetType().Name ?? "null"} cannot be written as it is. Say what it is with -As, UInt32 for example.");

    private static byte[] Number(object item, object? value, MemoryValueType type)
    {
        try
        {
            return type switch
            {
                MemoryValueType.Half => BitConverter.GetBytes(Float<Half>(value)),
                MemoryValueType.Single => BitConverter.GetBytes(Float<float>(value)),
                MemoryValueType.Double => BitConverter.GetBytes(Float<double>(value)),
                // Hexadecimal literals in an array are signed: of the same width they keep their bits.
                MemoryValueType.UInt32 when value is int signed => BitConverter.GetBytes(signed),
                MemoryValueType.UInt64 when value is long signed => BitConverter.GetBytes(signed),
                MemoryValueType.Byte => Integer<byte>(item, value),
                MemoryValueType.SByte => Integer<sbyte>(item, value),
                MemoryValueType.Int16 => Integer<short>(item, value),
                MemoryValueType.UInt16 => Integer<ushort>(item, value),
                MemoryValueType.Int32 => Integer<int>(item, value),
                MemoryValueType.UInt32 => Integer<uint>(item, value),
                MemoryValueType.Int64 => Integer<long>(item, value),
                MemoryValueType.UInt64 => Integer<ulong>(item, value),
                MemoryValueType.Int128 => Integer<Int128>(item, value),
                _ => Integer<UInt128>(item, value),
            };
        }
        catch (OverflowException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"'{item}' does not fit in {type}: {exception.Message}", exception);
        }
        catch (Exception exception) when (exception is FormatException or InvalidCastException)
        {
            var kind = type is MemoryValueType.Half or MemoryValueType.Single or MemoryValueType.Double ? "a number" : "a whole number";
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"'{item}' is not {kind} and cannot be written as {type}.{(value is string ? " Leave -As out to write text." : "")}", exception);
        }
    }

    private static byte[] Integer<T>(object item, object? value)
        where T : IBinaryInteger<T>, IMinMaxValue<T>
    {
        var number = Whole(item, value);
        if (number < BigInteger.CreateChecked(T.MinValue) || number > BigInteger.CreateChecked(T.MaxValue))
            throw new OverflowException($"it holds {T.MinValue} to {T.MaxValue}.");
        var bytes = new byte[T.MaxValue.GetByteCount()];
        T.CreateTruncating(number).WriteLittleEndian(bytes);
        return bytes;
    }

    private static BigInteger Whole(object item, object? value) => value switch
    {
        BigInteger number => number,
        Int128 number => number,
        UInt128 number => number,
        Enum name => new BigInteger(Convert.ToDecimal(name, CultureInfo.InvariantCulture)),
        sbyte or short or int or long when !IsHexadecimal(item.ToString()) => Convert.ToInt64(value, CultureInfo.InvariantCulture),
        Half or float or double or decimal when Convert.ToDouble(value, CultureInfo.InvariantCulture) is < 0 and > long.MinValue and var number && double.IsInteger(number) => new BigInteger(number),
        string text when IsHexadecimal(text) && text.Length > 18 => BigInteger.Parse("0" + text.AsSpan(2).ToString(), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture),
        string text when BigInteger.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var number) => number,
        _ => Binding.NumberText.Parse(item),
    };

    private static bool IsHexadecimal(string? text) => text?.StartsWith("0x", StringComparison.OrdinalIgnoreCase) == true;

    private static T Float<T>(object? value)
        where T : IFloatingPointIeee754<T>
    {
        var number = value is Half half ? (double)half : Convert.ToDouble(value, CultureInfo.InvariantCulture);
        var result = T.CreateTruncating(number);
        return T.IsInfinity(result) && double.IsFinite(number) ? throw new OverflowException("the number is too large.") : result;
    }
}
