using System.Globalization;
using System.Text;
using System.Text.Json;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// The latency of a page fault: this project's handler beside the C baseline, measured by one and the same C client, in
/// alternating pairs, pinned alike. A placement in which the baseline's own spread is over 5 % is void and measured again.
/// </summary>
internal sealed class FaultScenario(string[] options)
{
    private const int Attempts = 4;

    private static readonly (string Name, string Handler, string Client)[] s_placements =
    [
        ("handler and VMM on one CPU", "0", "0"),
        ("handler and VMM on two CPUs", "0", "1"),
    ];

    private readonly int _mib = Option(options, "--mib", 256);
    private readonly int _pairs = Option(options, "--pairs", 15);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateTempSubdirectory("gm-bench-").FullName;

    public int Run()
    {
        try
        {
            foreach (var program in new[] { "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Path.Combine(_folder, "image"), $"{_mib}");
            var table = new StringBuilder();
            table.AppendLine("| placement | | p50 us | p99 us | first us | total ms |").AppendLine("|---|---|---:|---:|---:|---:|");
            foreach (var placement in s_placements) Measure(placement, table);
            Console.WriteLine(table);
            if (_write is not null)
            {
                WriteSection(_write, "faults", $"{_mib} MiB, 4 KiB pages, every page touched once in random order, {_pairs} alternating pairs, medians:\n\n{table}");
            }

            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private void Measure((string Name, string Handler, string Client) placement, StringBuilder table)
    {
        for (var attempt = 1; ; attempt++)
        {
            var ours = new List<Sample>();
            var baseline = new List<Sample>();
            using (var server = new HandlerProcess(placement.Handler, "dotnet", [Environment.GetCommandLineArgs()[0], "serve", Socket("ours"), Image]))
            {
                server.Expect("ready");
                // Both get one unmeasured pair: what is compiled on first use is another figure.
                for (var pair = -1; pair < _pairs; pair++)
                {
                    var c = Baseline(placement);
                    var own = Client(placement.Client, Socket("ours"), pair);
                    if (pair < 0) continue;
                    baseline.Add(c);
                    ours.Add(own);
                }
            }

            var spread = Spread(baseline.Select(sample => sample.P50));
            Console.Error.WriteLine($"{placement.Name}: C p50 {Median(baseline, s => s.P50):0.00} us (spread {spread:P1}), ours {Median(ours, s => s.P50):0.00} us");
            if (spread > AllowedSpread && attempt < Attempts) continue;
            Row(table, placement.Name, "C, poll", baseline);
            Row(table, "", "GuestMemory", ours);
            var remark = spread > AllowedSpread ? $"(void: C's own spread {spread:P1})" : $"(C's spread {spread:P1})";
            table.AppendLine(CultureInfo.InvariantCulture, $"| | **ratio** {remark} | **{Ratio(s => s.P50):0.00}** | {Ratio(s => s.P99):0.00} | {Ratio(s => s.First):0.00} | {Ratio(s => s.Total):0.00} |");
            return;

            double Ratio(Func<Sample, double> figure) => BenchTools.Ratio(ours.Select(figure), baseline.Select(figure));
        }
    }

    private string Image => Path.Combine(_folder, "image");

    private Sample Baseline((string Name, string Handler, string Client) placement)
    {
        var socket = Socket("c");
        using var handler = new HandlerProcess(placement.Handler, Path.Combine(_folder, "uffd-handler"), [socket, Image, "--mode", "poll"]);
        handler.WaitFor(socket);
        return Client(placement.Client, socket, 0);
    }

    private Sample Client(string cpu, string socket, int seed)
    {
        var output = Execute("taskset", "-c", cpu, Path.Combine(_folder, "uffd-client"), socket, $"{_mib}", "--seed", $"{seed + 2}");
        using var json = JsonDocument.Parse(output);
        double Of(string name) => json.RootElement.GetProperty(name).GetDouble();
        return new Sample(Of("p50_us"), Of("p99_us"), Of("first_us"), Of("total_ms"));
    }

    private string Socket(string name) => Path.Combine(_folder, name + ".sock");

    private static void Row(StringBuilder table, string placement, string who, List<Sample> samples) =>
        table.AppendLine(CultureInfo.InvariantCulture, $"| {placement} | {who} | {Median(samples, s => s.P50):0.00} | {Median(samples, s => s.P99):0.00} | {Median(samples, s => s.First):0} | {Median(samples, s => s.Total):0} |");

    private static double Median(List<Sample> samples, Func<Sample, double> figure) => BenchTools.Median(samples.Select(figure));

    private sealed record Sample(double P50, double P99, double First, double Total);
}
