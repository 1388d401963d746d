using System.Globalization;
using System.Text.RegularExpressions;

namespace GuestMemory.Core.Tests;

/// <summary>The unit files of docs/operations.md, as systemd's own tools see them.</summary>
public sealed partial class UnitFileTests : IDisposable
{
    private const double MaxExposure = 2.5;
    private const string NeedsSystemd = "needs systemd-analyze 250 or later ('apt-get install systemd')";

    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void TheyAreRight()
    {
        RequireSystemd();
        var (code, text) = Compiler.Run("systemd-analyze", "verify", "--man=no", WriteService(), WriteSocket());
        // What this machine has besides is not looked at.
        Assert.DoesNotContain("uffd", string.Join('\n', text.Split('\n').Where(static line => !line.Contains("/lib/systemd/system/", StringComparison.Ordinal))), StringComparison.Ordinal);
        Assert.Equal(0, code);
    }

    [Fact]
    public void TheServiceIsExposedToLittle()
    {
        RequireSystemd();
        var (code, text) = Compiler.Run("systemd-analyze", "security", "--offline=yes", "--no-pager", WriteService());
        Assert.Equal(0, code);
        var exposure = Exposure().Match(text);
        Assert.True(exposure.Success, text);
        Assert.InRange(double.Parse(exposure.Groups["level"].Value, CultureInfo.InvariantCulture), 0, MaxExposure);
    }

    /// <summary>The unit's filter knows every call that the worker's own knows, and the one that enters it.</summary>
    [Fact]
    public void TheServiceMayMakeEveryCallOfAWorker()
    {
        RequireSystemd();
        var allowed = new HashSet<string>(StringComparer.Ordinal);
        foreach (var filter in Line("SystemCallFilter"))
        {
            if (filter.StartsWith('~')) allowed.ExceptWith(CallsOf(filter[1..].Split(' ')));
            else allowed.UnionWith(CallsOf(filter.Split(' ')));
        }

        var rules = UffdHost.WorkerFilter.Rules(isNative: true, process: 1).Where(static rule => rule.Action == Seccomp.SECCOMP_RET_ALLOW).Select(static rule => rule.Call);
        string[] ofSupervisor = ["seccomp", "prctl", "capget", "capset", "memfd_create", "pidfd_open", "mlock"];
        Assert.Equal("", string.Join(' ', rules.Concat(ofSupervisor).Where(call => !allowed.Contains(call))));
    }

    private static HashSet<string> CallsOf(IEnumerable<string> groups)
    {
        var calls = new HashSet<string>(StringComparer.Ordinal);
        foreach (var group in groups)
        {
            if (!group.StartsWith('@'))
            {
                calls.Add(group);
                continue;
            }

            var (code, text) = Compiler.Run("systemd-analyze", "syscall-filter", "--no-pager", group);
            Assert.True(code == 0, text);
            var items = text.Split('\n').Where(static line => line.StartsWith("    ", StringComparison.Ordinal)).Select(static line => line.Trim()).Where(static line => line.Length > 0 && line[0] != '#');
            calls.UnionWith(CallsOf(items.Where(static item => item[0] != '@')));
            calls.UnionWith(CallsOf(items.Where(item => item[0] == '@' && item != group)));
        }

        return calls;
    }

    private static void RequireSystemd()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/systemd-analyze"), NeedsSystemd);
        var (_, text) = Compiler.Run("systemd-analyze", "--version");
        var version = Version().Match(text);
        Assert.SkipUnless(version.Success && int.Parse(version.Groups["number"].Value, CultureInfo.InvariantCulture) >= 250, NeedsSystemd);
    }

    /// <summary>The blocks of the page that are unit files.</summary>
    private static string[] Units() => [.. Unit().Matches(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "docs", "operations.md"))).Select(static match => match.Groups["text"].Value)];

    private static string Service => Units().Single(static unit => unit.Contains("[Service]", StringComparison.Ordinal));

    private static IEnumerable<string> Line(string name) =>
        Service.Split('\n').Where(line => line.StartsWith(name + "=", StringComparison.Ordinal)).Select(line => line[(name.Length + 1)..]);

    /// <summary>The service for an image, with a program and a user that this machine has.</summary>
    private string WriteService()
    {
        var text = Service.Replace("PATH/bin/uffdhost/linux-ARCH/GuestMemory.UffdHost", "/bin/true", StringComparison.Ordinal).Replace("User=uffd", "User=daemon", StringComparison.Ordinal);
        File.WriteAllText(_folder["uffd@web.service"], text);
        return _folder["uffd@web.service"];
    }

    private string WriteSocket()
    {
        File.WriteAllText(_folder["uffd@web.socket"], Units().Single(static unit => unit.Contains("[Socket]", StringComparison.Ordinal)).Replace("SocketUser=fc", "SocketUser=daemon", StringComparison.Ordinal));
        return _folder["uffd@web.socket"];
    }

    [GeneratedRegex("^```ini\n(?<text>.*?)^```$", RegexOptions.ExplicitCapture | RegexOptions.Multiline | RegexOptions.Singleline, 1000)]
    private static partial Regex Unit();

    [GeneratedRegex(@"Overall exposure level for .*: (?<level>\d+\.\d+)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Exposure();

    [GeneratedRegex(@"^systemd (?<number>\d+)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Version();
}
