using System.Globalization;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell;

/// <summary>How addresses, sizes and memory look; called by the views.</summary>
public static class Formatting
{
    private const int MaxRows = 256;

    /// <summary>An address in hexadecimal, at least eight digits: 0x80000000.</summary>
    public static string Hex(ulong value) => $"0x{value:x8}";

    /// <summary>A size in the largest binary unit that keeps it whole, or with one decimal: 256 MiB.</summary>
    public static string Size(ulong bytes)
    {
        string[] units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        var unit = 0;
        while (unit < units.Length - 1 && bytes >> (10 * (unit + 1)) != 0) unit++;
        var whole = bytes >> (10 * unit);
        return (whole << (10 * unit)) == bytes
            ? $"{whole} {units[unit]}"
            : string.Create(CultureInfo.InvariantCulture, $"{bytes / (double)(1UL << (10 * unit)):0.0} {units[unit]}");
    }

    /// <summary>Bytes a second, as a size: 12.5 MiB/s.</summary>
    public static string Rate(double bytes) => $"{Size((ulong)Math.Min(bytes, ulong.MaxValue))}/s";

    /// <summary>A time in microseconds, milliseconds or seconds.</summary>
    public static string Time(TimeSpan time) =>
        time == TimeSpan.Zero ? "-"
        : time.TotalMicroseconds < 999.95 ? string.Create(CultureInfo.InvariantCulture, $"{time.TotalMicroseconds:0.0} us")
        : time.TotalMilliseconds < 999.95 ? string.Create(CultureInfo.InvariantCulture, $"{time.TotalMilliseconds:0.0} ms")
        : string.Create(CultureInfo.InvariantCulture, $"{time.TotalSeconds:0.0} s");

    /// <summary>A part of a whole, rounded down, so that 100 % says that nothing is missing.</summary>
    public static string Percent(double percent) => string.Create(CultureInfo.InvariantCulture, $"{Math.Floor(percent * 10) / 10:0.0} %");

    /// <summary>What a request holds, as its wire JSON.</summary>
    public static string Content(VmMemoryRequest request)
    {
        ArgumentNullException.ThrowIfNull(request);
        return request.ToJson([])[(request.GetType().Name.Length + 4)..^1];
    }

    /// <summary>The text around a place, which has at most 44 characters: bytes that ASCII does not print are dots.</summary>
    /// <param name="bytes">The bytes.</param>
    /// <param name="place">Where the text is wanted; twelve characters stand before it.</param>
    public static string Excerpt(byte[] bytes, ulong place)
    {
        ArgumentNullException.ThrowIfNull(bytes);
        var from = bytes.AsSpan((int)Math.Min(Math.Max(place, 12) - 12, (ulong)bytes.Length));
        Span<char> text = stackalloc char[Math.Min(from.Length, 44)];
        for (var i = 0; i < text.Length; i++) text[i] = from[i] is >= 0x20 and < 0x7f ? (char)from[i] : '.';
        return new string(text);
    }

    /// <summary>A hex dump with guest addresses, 16 bytes a row; runs of equal rows are folded into one asterisk, as hexdump(1) does.</summary>
    public static string HexDump(MemoryBlock block)
    {
        ArgumentNullException.ThrowIfNull(block);
        var text = new StringBuilder();
        var bytes = block.Bytes.AsSpan();
        var digits = block.Address + (ulong)bytes.Length > uint.MaxValue ? "x16" : "x8";
        var rows = 0;
        var folded = false;
        for (var at = 0; at < bytes.Length && rows < MaxRows; at += 16)
        {
            var row = bytes[at..Math.Min(at + 16, bytes.Length)];
            if (at >= 16 && at + 16 < bytes.Length && row.SequenceEqual(bytes.Slice(at - 16, 16)))
            {
                if (!folded) text.AppendLine("*");
                folded = true;
                continue;
            }

            folded = false;
            rows++;
            text.Append((block.Address + (ulong)at).ToString(digits, CultureInfo.InvariantCulture)).Append("  ");
            for (var i = 0; i < 16; i++)
            {
                text.Append(i < row.Length ? row[i].ToString("x2", CultureInfo.InvariantCulture) : "  ").Append(i == 7 ? "  " : " ");
            }

            text.Append(' ');
            foreach (var value in row) text.Append(value is >= 0x20 and < 0x7f ? (char)value : '.');
            text.AppendLine();
            if (rows == MaxRows && at + 16 < bytes.Length) text.Append(CultureInfo.InvariantCulture, $"... {bytes.Length - at - 16} more bytes: the Bytes property, -Raw or -OutFile has them all.").AppendLine();
        }

        return text.ToString().TrimEnd('\n');
    }
}
