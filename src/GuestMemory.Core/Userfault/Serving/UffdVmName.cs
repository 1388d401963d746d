using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The names of a handler's VMs. A VM is called as the systemd unit, or the control group, that its VMM runs in, since that is what an
/// operator knows it by; else as the handler's socket, with its number. Names are ASCII, whatever a VMM's user calls a control group.
/// </summary>
internal static partial class UffdVmName
{
    /// <summary>The longest name, in characters.</summary>
    public const int MaxLength = 64;

    // A login session or a user's manager says who started the VMM, not which VM it is.
    private static readonly string[] s_sessions = ["session-", "user@", "init.scope"];

    /// <summary>A name for a VM that has just come.</summary>
    /// <param name="processId">The VMM.</param>
    /// <param name="socketPath">Where the handler listens.</param>
    /// <param name="id">The VM's number.</param>
    /// <param name="taken">The names of the handler's other VMs.</param>
    public static string Choose(int processId, string socketPath, int id, IReadOnlyCollection<string> taken)
    {
        var number = id.ToString(CultureInfo.InvariantCulture);
        return Unique(OfCgroup(Read($"/proc/{processId}/cgroup"), Read("/proc/self/cgroup")) ?? $"{Clean(Path.GetFileNameWithoutExtension(socketPath)) ?? "vm"}-{number}", taken);
    }

    /// <summary>Checks a name that an operator gives.</summary>
    /// <param name="name">The name.</param>
    /// <param name="of">What is to be called so.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported.</exception>
    public static void Check(string name, string of = "a VM")
    {
        if (name != Clean(name))
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                $"'{(name.Length > MaxLength ? name[..MaxLength] + "..." : name)}' is no name of {of}: that has 1 to {MaxLength} letters, digits, '-', '_' and '.', begins and ends with a letter or digit, and is no number.");
        }
    }

    internal static GuestMemoryException InUse(string name, string socketPath) =>
        new(GuestMemoryError.NameInUse, $"The handler at {socketPath} serves a VM '{name}' already. Give another name.");

    /// <summary>The name that a control group gives its VM, as /proc/PID/cgroup tells it; null where it says nothing of a VM.</summary>
    /// <param name="text">What the file of the VMM holds.</param>
    /// <param name="own">What that of the handler holds: a group that both are in is not the VM's.</param>
    internal static string? OfCgroup(string text, string own)
    {
        var path = PathIn(text);
        if (path is null || path == PathIn(own)) return null;
        var groups = path.Split('/', StringSplitOptions.RemoveEmptyEntries);
        // A unit may have groups of its own below it.
        var unit = Array.FindLast(groups, static group => group.EndsWith(".service", StringComparison.Ordinal) || group.EndsWith(".scope", StringComparison.Ordinal));
        if (unit is null) return groups is [.., var last] && !last.EndsWith(".slice", StringComparison.Ordinal) ? Clean(last) : null;
        if (Array.Exists(s_sessions, session => unit.StartsWith(session, StringComparison.Ordinal))) return null;
        var name = Escape().Replace(unit[..unit.LastIndexOf('.')], static match => ((char)byte.Parse(match.ValueSpan[2..], NumberStyles.HexNumber, CultureInfo.InvariantCulture)).ToString());
        // vm@web.service is the VM web.
        var at = name.IndexOf('@', StringComparison.Ordinal);
        return Clean(at >= 0 && at + 1 < name.Length ? name[(at + 1)..] : name);
    }

    /// <summary>What a name can be of a text; null where nothing is left of it.</summary>
    internal static string? Clean(string text)
    {
        var name = new StringBuilder();
        foreach (var rune in text.AsSpan(0, Math.Min(text.Length, MaxLength))) name.Append(char.IsAsciiLetterOrDigit(rune) || rune is '-' or '_' or '.' ? rune : '-');
        var clean = name.ToString().Trim('-', '_', '.');
        // A number is that of a VM.
        return clean.Length == 0 ? null : !clean.All(char.IsAsciiDigit) ? clean : clean.Length + 3 <= MaxLength ? $"vm-{clean}" : null;
    }

    /// <summary>A name that no other VM has, however it is written.</summary>
    internal static string Unique(string name, IReadOnlyCollection<string> taken)
    {
        var unique = name;
        for (var i = 2; taken.Contains(unique, StringComparer.OrdinalIgnoreCase); i++)
        {
            var suffix = string.Create(CultureInfo.InvariantCulture, $"-{i}");
            unique = name[..Math.Min(name.Length, MaxLength - suffix.Length)] + suffix;
        }

        return unique;
    }

    /// <summary>The path in the one hierarchy (cgroup v2), or in systemd's own (v1).</summary>
    private static string? PathIn(string text)
    {
        var lines = text.Split('\n').Select(static line => line.Split(':', 3)).Where(static parts => parts.Length == 3 && parts[2].Length > 1).ToArray();
        return (Array.Find(lines, static parts => parts[1].Length == 0) ?? Array.Find(lines, static parts => parts[1] == "name=systemd"))?[2];
    }

    private static string Read(string path)
    {
        try
        {
            return File.ReadAllText(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // It has ended, or /proc is hidden.
            return "";
        }
    }

    [GeneratedRegex(@"\\x[0-9a-fA-F]{2}", RegexOptions.ExplicitCapture | RegexOptions.CultureInvariant, matchTimeoutMilliseconds: 1000)]
    private static partial Regex Escape();
}
