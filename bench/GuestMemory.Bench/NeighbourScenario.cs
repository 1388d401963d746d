using System.Diagnostics;
using System.Globalization;
using System.Text;
using GuestMemory.Core.Userfault;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// A quiet VM that touches its pages while another VM of the same handler does what keeps a handler busy (bad-vm.c): beside the same VM
/// alone, and beside C handlers, of which each VM has one.
/// </summary>
internal sealed class NeighbourScenario(string[] options)
{
    // The largest pages that a VM can claim fit into it.
    private const int Mib = 1024;
    private static readonly string[] s_kinds = ["alone", "gigantic", "lazy", "no-huge-pages", "errors", "stopped", "blocking"];

    private readonly int _touches = Option(options, "--touches", 20000);
    private readonly int _rounds = Option(options, "--rounds", 5);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;

    private string Image => Path.Combine(_folder, "image");

    public int Run()
    {
        try
        {
            PublishHost();
            foreach (var program in new[] { "bad-vm", "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Image, $"{Mib}");
            var ours = s_kinds.ToDictionary(static kind => kind, static _ => new List<double[]>(), StringComparer.Ordinal);
            var baseline = s_kinds.ToDictionary(static kind => kind, static _ => new List<double[]>(), StringComparer.Ordinal);
            for (var round = 0; round < _rounds; round++)
            {
                foreach (var kind in s_kinds)
                {
                    baseline[kind].Add(Baseline(kind));
                    ours[kind].Add(Ours(kind));
                    Console.Error.WriteLine($"{kind}: C p99 {baseline[kind][^1][1]:0} us, ours {ours[kind][^1][1]:0} us");
                }
            }

            var table = new StringBuilder("| beside a VM that | handler | p50 us | p99 us | p99.9 ms | max ms | p99 beside alone |\n|---|---|---:|---:|---:|---:|---:|\n");
            foreach (var kind in s_kinds)
            {
                Row(table, $"{Doing(kind)}{Remark(baseline[kind])}", "C, one each", baseline[kind], baseline["alone"]);
                Row(table, "", "GuestMemory", ours[kind], ours["alone"]);
            }

            Console.WriteLine(table);
            if (_write is not null) WriteSection(_write, "neighbours", $"{_touches} random pages of 1 GiB, medians of {_rounds} rounds; to reach: a p99 within 1.5 of alone, p99.9 under 20 ms, a maximum of at most twice C's:\n\n{table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private static string Doing(string kind) => kind switch
    {
        "alone" => "(none: alone)",
        "gigantic" => "claims pages of 1 GiB",
        "lazy" => "removes pages, and does not run when the removal was read",
        "no-huge-pages" => "has huge pages of an empty pool",
        "errors" => "sends one bad hand-over after the other",
        "stopped" => "is stopped, with faults and a removal under way",
        _ => "clears O_NONBLOCK",
    };

    private static string Remark(List<double[]> baseline)
    {
        var spread = Spread(baseline.Select(static figures => figures[1]));
        return spread > AllowedSpread ? string.Create(CultureInfo.InvariantCulture, $" (void: C's own spread {spread:P1})") : "";
    }

    private static void Row(StringBuilder table, string kind, string handler, List<double[]> figures, List<double[]> alone)
    {
        double Of(int at) => Median(figures.Select(figure => figure[at]));
        var ratio = Ratio(figures.Select(static figure => figure[1]), alone.Select(static figure => figure[1]));
        table.AppendLine(CultureInfo.InvariantCulture, $"| {kind} | {handler} | {Of(0):0.0} | {Of(1):0.0} | {Of(2) / 1000:0.00} | {Of(3) / 1000:0.0} | **{ratio:0.00}** |");
    }

    private double[] Ours(string kind)
    {
        var socket = Path.Combine(_folder, "ours.sock");
        return WithHandler(new UffdHandlerOptions { SocketPath = socket, MemoryPath = Image, Strategy = UffdStrategy.OnDemand }, _ => Touch(socket, kind, socket));
    }

    private double[] Baseline(string kind)
    {
        var (socket, other) = (Path.Combine(_folder, "c.sock"), Path.Combine(_folder, "bad.sock"));
        using var handler = Start(socket);
        // It ends with the first VM that it cannot serve, or that goes; bad-vm goes on without it.
        using var bad = kind == "alone" ? null : Start(other);
        return Touch(socket, kind, other);

        HandlerProcess Start(string path)
        {
            File.Delete(path);
            var process = new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "uffd-handler"), [path, Image, "--mode", "poll"]);
            process.WaitFor(path);
            return process;
        }
    }

    /// <summary>What the quiet VM measured, in microseconds: p50, p99, p99.9 and maximum.</summary>
    private double[] Touch(string socket, string kind, string badSocket)
    {
        using var bad = kind == "alone" ? null : Process.Start(new ProcessStartInfo(Path.Combine(_folder, "bad-vm"), [badSocket, kind]) { UseShellExecute = false, RedirectStandardOutput = true });
        try
        {
            if (bad is not null && bad.StandardOutput.ReadLine() != "busy") throw new InvalidOperationException("The bad VM did not start.");
            using var client = UffdClient.Start(_folder, UffdClient.Anywhere, socket, Mib, "--touches", $"{_touches}");
            return UffdClient.Figures(client, "p50_us", "p99_us", "p999_us", "max_us");
        }
        finally
        {
            bad?.Kill();
            bad?.WaitForExit();
        }
    }
}
