using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// What operations cost beside the same loops in C, in alternating pairs on one CPU. A row in which the baseline's own spread is over
/// 5 % is void and measured again.
/// </summary>
internal sealed class RowScenario(RowSet set, string[] options)
{
    private const int PairsPerProcess = 3;

    private readonly int _pairs = Option(options, "--pairs", 15);
    private readonly int _attempts = Option(options, "--attempts", 4);
    private readonly string _cpu = Text(options, "--cpu") ?? set.Cpus;
    private readonly string? _write = Text(options, "--write");

    // Where there is no compiler.
    private readonly string? _baseline = Text(options, "--baseline");
    private readonly string _folder = Directory.CreateTempSubdirectory("gm-bench-").FullName;

    public int Run()
    {
        try
        {
            var baseline = _baseline ?? Compile(_folder, set.Program, "-mavx2", "-pthread", "-w");
            var results = new Result?[set.Rows.Length];
            var allocated = 0L;
            for (var attempt = 0; attempt < _attempts && results.Any(result => result is null or { Spread: > AllowedSpread }); attempt++)
            {
                allocated += Attempt(baseline, results);
            }

            var table = Table(results);
            var measured = $"{set.Setup}, {_pairs} alternating pairs, medians. {set.Remark(allocated)}";
            Console.WriteLine(table);
            Console.WriteLine($"measured: {measured}");
            if (_write is not null) WriteSection(_write, set.Name, $"{measured}\n\n{table}");

            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private long Attempt(string baseline, Result?[] results)
    {
        var pairs = new List<(double[] Ours, double[] Baseline)>();
        var allocated = 0L;
        while (pairs.Count < _pairs) allocated += MeasureInOneProcess(baseline, pairs);
        for (var i = 0; i < results.Length; i++)
        {
            var row = i;
            var own = pairs.Select(pair => pair.Ours[row]).ToArray();
            var c = pairs.Select(pair => set.Rows[row].Reference is { } reference ? pair.Ours[set.IndexOf(reference)] : pair.Baseline[row]).ToArray();
            var result = new Result(Median(own), Median(c), Ratio(own, c), set.Rows[row].Tail ? double.NaN : Spread(c));
            if (results[i] is null || results[i]!.Spread > AllowedSpread) results[i] = result;
        }

        return allocated;
    }

    /// <summary>Measures a few pairs: where the compiler and the kernel put things differs from process to process.</summary>
    private long MeasureInOneProcess(string baseline, List<(double[] Ours, double[] Baseline)> pairs)
    {
        var allocated = 0L;
        using var ours = Process.Start(new ProcessStartInfo("taskset", ["-c", _cpu, "dotnet", Environment.GetCommandLineArgs()[0], "rows", set.Name])
        {
            UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true,
        })!;
        ours.StandardOutput.ReadLine();
        for (var i = 0; i < PairsPerProcess && pairs.Count < _pairs; i++)
        {
            var c = Baseline(string.Concat(set.Filters.Select(filter => Execute("taskset", "-c", _cpu, baseline, "--filter", filter, "--mib", set.Mebibytes, "--reps", $"{set.Repetitions}"))));
            ours.StandardInput.WriteLine();
            var figures = (ours.StandardOutput.ReadLine() ?? throw new InvalidOperationException("The measuring process ended.")).Split(' ');
            pairs.Add(([.. figures[..^1].Select(text => double.Parse(text, CultureInfo.InvariantCulture))], c));
            allocated += long.Parse(figures[^1], CultureInfo.InvariantCulture);
        }

        ours.StandardInput.Close();
        ours.WaitForExit();
        return allocated;
    }

    private double[] Baseline(string output)
    {
        var lines = output.Split('\n');
        return [.. set.Rows.Select(row => row.Baseline is null ? double.NaN : NanosecondsOf(lines.First(line => line.Contains(row.Baseline, StringComparison.Ordinal))))];

        static double NanosecondsOf(string line)
        {
            using var json = JsonDocument.Parse(line);
            return json.RootElement.GetProperty("ns_op").GetDouble();
        }
    }

    private string Table(Result?[] results)
    {
        var table = new StringBuilder("| operation | C | GuestMemory | ratio | to reach |\n|---|---:|---:|---:|---:|\n");
        for (var i = 0; i < results.Length; i++)
        {
            var row = set.Rows[i];
            var result = results[i]!;
            var against = double.IsNaN(result.Baseline) ? "" : row.Reference is null ? Time(result.Baseline) : $"({Time(result.Baseline)})";
            var ratio = double.IsNaN(result.Ratio) ? "" : string.Create(CultureInfo.InvariantCulture, $"**{result.Ratio:0.00}**");
            var remark = result.Spread > AllowedSpread ? string.Create(CultureInfo.InvariantCulture, $" (void: the baseline's own spread {result.Spread:P1})") : "";
            table.AppendLine(CultureInfo.InvariantCulture, $"| {row.Name} | {against} | {Time(result.Ours)} | {ratio}{remark} | {row.Target} |");
        }

        return table.ToString();
    }

    private static string Time(double nanoseconds) => nanoseconds switch
    {
        < 1000 => string.Create(CultureInfo.InvariantCulture, $"{nanoseconds:0.00} ns"),
        < 100_000 => string.Create(CultureInfo.InvariantCulture, $"{nanoseconds / 1000:0.0} us"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{nanoseconds / 1000:0} us"),
    };

    private sealed record Result(double Ours, double Baseline, double Ratio, double Spread);
}
