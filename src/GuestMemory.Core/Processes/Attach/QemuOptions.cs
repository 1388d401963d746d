using System.Globalization;
using System.Text.Json;

namespace GuestMemory.Core.Processes;

/// <summary>The command line of a QEMU, as far as it is about memory and monitors. It is another process's: nothing in it is relied on but as a hint.</summary>
internal sealed class QemuOptions(IReadOnlyList<string> arguments)
{
    private const ulong Mebi = 1 << 20;

    /// <summary>The machine's options, the later over the earlier; "type" is its name.</summary>
    public IReadOnlyDictionary<string, string> Machine { get; } = Merge([.. Values("M", arguments), .. Values("machine", arguments)], "type");

    /// <summary>The memory of -m in bytes.</summary>
    public ulong? Memory => Merge([.. Values("m", arguments)], "size").TryGetValue("size", out var text) ? SizeOf(text, Mebi) : 128 * Mebi;

    /// <summary>Whether memory can have been plugged in since the start.</summary>
    public bool CanGrow => Merge([.. Values("m", arguments)], "size").ContainsKey("maxmem");

    /// <summary>The file or folder of -mem-path.</summary>
    public string? MemoryPath => Values("mem-path", arguments).LastOrDefault();

    /// <summary>The objects that are memory, by their ids.</summary>
    public IReadOnlyDictionary<string, IReadOnlyDictionary<string, string>> Backends { get; } = Values("object", arguments).Select(static text => Parse(text, "qom-type"))
        .Where(static options => options.GetValueOrDefault("qom-type", "").StartsWith("memory-backend-", StringComparison.Ordinal) && options.ContainsKey("id"))
        .GroupBy(static options => options["id"], StringComparer.Ordinal).ToDictionary(static group => group.Key, static group => group.Last(), StringComparer.Ordinal);

    /// <summary>The ids of the objects that are the memory of the machine's NUMA nodes, in the order of the nodes.</summary>
    public IReadOnlyList<string> NodeBackends { get; } = [.. Values("numa", arguments).Select(static text => Parse(text, "type")).Select(static (options, place) => (Options: options, Place: place))
        .Where(static node => node.Options.ContainsKey("memdev"))
        .OrderBy(static node => node.Options.TryGetValue("nodeid", out var id) && int.TryParse(id, CultureInfo.InvariantCulture, out var number) ? number : node.Place).Select(static node => node.Options["memdev"])];

    /// <summary>The Unix sockets at which a QMP monitor listens.</summary>
    public IEnumerable<string> MonitorPaths
    {
        get
        {
            foreach (var text in Values("qmp", arguments).Concat(Values("qmp-pretty", arguments)))
            {
                if (text.StartsWith("unix:", StringComparison.Ordinal)) yield return Parse(text[5..], "path").GetValueOrDefault("path", "");
            }

            var devices = Values("chardev", arguments).Select(static text => Parse(text, "backend")).Where(static options => options.GetValueOrDefault("backend") == "socket" && options.ContainsKey("id") && options.ContainsKey("path"))
                .GroupBy(static options => options["id"], StringComparer.Ordinal).ToDictionary(static group => group.Key, static group => group.Last()["path"], StringComparer.Ordinal);
            foreach (var text in Values("mon", arguments))
            {
                var options = Parse(text, "chardev");
                if (options.GetValueOrDefault("mode") == "control" && devices.TryGetValue(options.GetValueOrDefault("chardev", ""), out var path)) yield return path;
            }
        }
    }

    /// <summary>The length of a memory object in bytes.</summary>
    public static ulong? SizeOf(IReadOnlyDictionary<string, string> backend) => backend.TryGetValue("size", out var text) ? SizeOf(text, 1) : null;

    /// <summary>A size as QEMU writes it: "3G", "4194304k", "512" (in <paramref name="unit"/>).</summary>
    public static ulong? SizeOf(string text, ulong unit)
    {
        if (text.Length == 0) return null;
        const string Suffixes = "bkmgtpe";
        var shift = Suffixes.IndexOf(char.ToLowerInvariant(text[^1]), StringComparison.Ordinal);
        if (shift >= 0) (text, unit) = (text[..^1], 1UL << (10 * shift));
        if (!decimal.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var number)) return null;
        return number > ulong.MaxValue / unit ? null : (ulong)(number * unit);
    }

    /// <summary>Options as QEMU takes them: "pc,accel=tcg" (a comma in a value is doubled), or a JSON object.</summary>
    public static IReadOnlyDictionary<string, string> Parse(string text, string first)
    {
        var options = new Dictionary<string, string>(StringComparer.Ordinal);
        if (text.StartsWith('{'))
        {
            try
            {
                using var json = JsonDocument.Parse(text);
                foreach (var property in json.RootElement.EnumerateObject()) options[property.Name] = property.Value.ToString();
            }
            catch (Exception exception) when (exception is JsonException or InvalidOperationException)
            {
                // InvalidOperationException: a text that is no Unicode.
                // None that is known.
            }

            return options;
        }

        var isFirst = true;
        foreach (var part in text.Replace(",,", "\0", StringComparison.Ordinal).Split(',').Select(static part => part.Replace('\0', ',')))
        {
            var at = part.IndexOf('=', StringComparison.Ordinal);
            if (at >= 0) options[part[..at]] = part[(at + 1)..];
            else options[isFirst ? first : part] = isFirst ? part : "on";
            isFirst = false;
        }

        return options;
    }

    private static Dictionary<string, string> Merge(IEnumerable<string> texts, string first)
    {
        var merged = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (var text in texts)
        {
            foreach (var (key, value) in Parse(text, first)) merged[key] = value;
        }

        return merged;
    }

    /// <summary>The values of an option, which may begin with one or two dashes.</summary>
    private static IEnumerable<string> Values(string name, IReadOnlyList<string> arguments)
    {
        for (var i = 1; i < arguments.Count - 1; i++)
        {
            if (arguments[i] == $"-{name}" || arguments[i] == $"--{name}") yield return arguments[++i];
        }
    }
}
