using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Bench;

/// <summary>What every scenario needs: options, C programs, medians, and the section of a page that it writes.</summary>
internal static class BenchTools
{
    /// <summary>A run in which the baseline's own spread is over this is void.</summary>
    public const double AllowedSpread = 0.05;

    public static int Option(string[] options, string name, int otherwise) =>
        Text(options, name) is { } text ? int.Parse(text, CultureInfo.InvariantCulture) : otherwise;

    public static string? Text(string[] options, string name) =>
        Array.IndexOf(options, name) is var at and >= 0 && at + 1 < options.Length ? options[at + 1] : null;

    /// <summary>Compiles a program of bench/baseline and returns its path.</summary>
    public static string Compile(string folder, string program, params string[] flags)
    {
        var output = Path.Combine(folder, program);
        Execute("cc", ["-O2", .. flags, "-o", output, Path.Combine(AppContext.BaseDirectory, "baseline", program + ".c")]);
        return output;
    }

    /// <summary>The module's manifest, which stands at the root of the clone that this was built in.</summary>
    public static string Manifest()
    {
        for (var folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            if (Path.Combine(folder, "GuestMemory.psd1") is var manifest && File.Exists(manifest)) return manifest;
        }

        throw new InvalidOperationException("GuestMemory.psd1 is not above the benchmark.");
    }

    /// <summary>Publishes the handler's program as Package does, into the folder beside the library where that looks for it first.</summary>
    public static void PublishHost()
    {
        var system = $"linux-{RuntimeInformation.OSArchitecture.ToString().ToLowerInvariant()}";
        Execute("dotnet", "publish", Path.Combine(Path.GetDirectoryName(Manifest())!, "src", "GuestMemory.UffdHost"), "--configuration", "Release", "--runtime", system,
            "--output", Path.Combine(AppContext.BaseDirectory, "uffdhost", system), "--nologo", "--verbosity", "quiet", "--disable-build-servers");
    }

    /// <summary>Runs something beside a handler in a process of its own, and waits until that process has ended.</summary>
    public static T WithHandler<T>(UffdHandlerOptions options, Func<UffdHandler, T> body)
    {
        using var handler = UffdHandler.StartProcess(options);
        using var supervisor = Process.GetProcessById(handler.ProcessId);
        try
        {
            return body(handler);
        }
        finally
        {
            handler.Stop();
            supervisor.WaitForExit();
        }
    }

    public static string Execute(string program, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardOutput = true })!;
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0 ? output : throw new InvalidOperationException($"{program} ended with {process.ExitCode}");
    }

    public static double Median(IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return (sorted[sorted.Length / 2] + sorted[(sorted.Length - 1) / 2]) / 2;
    }

    /// <summary>The distance between the quartiles, as a part of the median.</summary>
    public static double Spread(IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return (sorted[sorted.Length * 3 / 4] - sorted[sorted.Length / 4]) / Median(sorted);
    }

    /// <summary>The median of the pairs' own ratios: what slows the machine down slows both halves of a pair.</summary>
    public static double Ratio(IEnumerable<double> ours, IEnumerable<double> baseline) => Median(ours.Zip(baseline, (own, c) => own / c));

    /// <summary>Replaces what stands between the markers of a section.</summary>
    public static void WriteSection(string path, string section, string text)
    {
        string begin = $"<!-- {section}: begin -->", end = $"<!-- {section}: end -->";
        var page = File.ReadAllText(path);
        var from = page.IndexOf(begin, StringComparison.Ordinal) + begin.Length;
        var to = page.IndexOf(end, StringComparison.Ordinal);
        if (from < begin.Length || to < from) throw new InvalidOperationException($"{path} has no section {section}.");
        File.WriteAllText(path, $"{page[..from]}\n\n{text}\n{page[to..]}");
    }
}
