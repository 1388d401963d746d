using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Linux;

/// <summary>
/// What a kernel says of itself for dumps (VMCOREINFO, kernel/vmcore_info.c): a text of lines KEY=VALUE, of one page, which every kernel with
/// CONFIG_VMCORE_INFO (before 6.9: CONFIG_CRASH_CORE) makes when it boots.
/// </summary>
internal sealed class VmcoreInfo
{
    /// <summary>How the text begins.</summary>
    public const string Begin = "OSRELEASE=";

    // The kernel gives it one page; pages of aarch64 may have 64 KiB, but not the text.
    private const int MaxSize = 16384;

    private readonly Dictionary<string, string> _values;

    // A field of struct new_utsname.
    private const int MaxRelease = 64;

    private VmcoreInfo(Dictionary<string, string> values, string text)
    {
        _values = values;
        Text = text;
    }

    /// <summary>The text.</summary>
    public string Text { get; }

    public string Release => _values["OSRELEASE"];

    /// <summary>Reads what is taken for such a text; null where it is none that can be used.</summary>
    public static VmcoreInfo? TryRead(GuestMemoryMmap memory, ulong address, CancellationToken cancellation)
    {
        var bytes = KernelData.ReadSome(memory, address, MaxSize, cancellation).AsSpan();
        var end = bytes.IndexOf((byte)0);
        if (end < 0) return null;
        return Parse(bytes[..end]);
    }

    public static VmcoreInfo? Parse(ReadOnlySpan<byte> bytes)
    {
        var values = new Dictionary<string, string>(StringComparer.Ordinal);
        var text = Encoding.Latin1.GetString(bytes);
        foreach (var line in text.AsSpan().EnumerateLines())
        {
            if (line.IsEmpty) continue;
            var at = line.IndexOf('=');
            if (at <= 0 || line.ContainsAnyExceptInRange(' ', '~')) return null;
            values.TryAdd(line[..at].ToString(), line[(at + 1)..].ToString());
        }

        return values.GetValueOrDefault("OSRELEASE") is { Length: <= MaxRelease } && values.ContainsKey("SYMBOL(swapper_pg_dir)") ? new VmcoreInfo(values, text) : null;
    }

    /// <summary>The virtual address of a symbol.</summary>
    public ulong? Symbol(string name) => Hex($"SYMBOL({name})");

    /// <summary>A number: decimal with or without a sign, or hexadecimal behind 0x.</summary>
    public long? Number(string name)
    {
        if (!_values.TryGetValue($"NUMBER({name})", out var text)) return null;
        if (text.StartsWith("0x", StringComparison.Ordinal)) return ulong.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var hex) ? (long)hex : null;
        return long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var number) ? number : null;
    }

    /// <summary>The offset of a field.</summary>
    public long? Offset(string name) => Plain($"OFFSET({name})");

    /// <summary>A plain key with a decimal number.</summary>
    public long? Plain(string key) => _values.TryGetValue(key, out var text) && long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : null;

    /// <summary>A key with a hexadecimal number without 0x.</summary>
    public ulong? Hex(string key) => _values.TryGetValue(key, out var text) && ulong.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var number) ? number : null;
}
