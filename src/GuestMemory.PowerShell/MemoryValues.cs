using System.Globalization;
using System.Management.Automation;
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
        MemoryValueType.Int16 or MemoryValueType.UInt16 => 2,
        MemoryValueType.Int32 or MemoryValueType.UInt32 or MemoryValueType.Single => 4,
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
                MemoryValueType.Single => BitConverter.GetBytes(Convert.ToSingle(value, CultureInfo.InvariantCulture)),
                MemoryValueType.Double => BitConverter.GetBytes(Convert.ToDouble(value, CultureInfo.InvariantCulture)),
                MemoryValueType.Byte => [(byte)Unsigned(item, byte.MaxValue)],
                MemoryValueType.UInt16 => BitConverter.GetBytes((ushort)Unsigned(item, ushort.MaxValue)),
                // Hexadecimal literals in an array are signed: of the same width they keep their bits.
                MemoryValueType.UInt32 when value is int signed => BitConverter.GetBytes(signed),
                MemoryValueType.UInt64 when value is long signed => BitConverter.GetBytes(signed),
                MemoryValueType.UInt32 => BitConverter.GetBytes((uint)Unsigned(item, uint.MaxValue)),
                MemoryValueType.UInt64 => BitConverter.GetBytes(Unsigned(item, ulong.MaxValue)),
                MemoryValueType.SByte => [(byte)Convert.ToSByte(value, CultureInfo.InvariantCulture)],
                MemoryValueType.Int16 => BitConverter.GetBytes(Convert.ToInt16(value, CultureInfo.InvariantCulture)),
                MemoryValueType.Int32 => BitConverter.GetBytes(Convert.ToInt32(value, CultureInfo.InvariantCulture)),
                _ => BitConverter.GetBytes(Convert.ToInt64(value, CultureInfo.InvariantCulture)),
            };
        }
        catch (Exception exception) when (exception is FormatException or OverflowException or InvalidCastException)
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"'{item}' does not fit in {type}: {exception.Message}", exception);
        }
    }

    private static ulong Unsigned(object item, ulong max)
    {
        var number = Binding.NumberText.Parse(item);
        return number <= max ? number : throw new OverflowException($"The largest value is {max}.");
    }
}
