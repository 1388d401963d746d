using System.Globalization;
using System.Text;
using System.Text.Json;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// Every strategy beside the C baseline in its modes, nothing pinned, both CPUs free: the latency of a fault, how many there were,
/// the first page, and the time until all pages were touched, in rounds of all of them.
/// </summary>
internal sealed class StrategyScenario(string[] options)
{
    private const string Anywhere = "0,1";

    private static readonly (string Name, string? Strategy, string[] Arguments)[] s_handlers =
    [
        ("C poll", null, []),
        ("OnDemand", "OnDemand", []),
        ("C --window 65536", null, ["--window", "65536"]),
        ("Window", "Window", []),
        ("C --fault-all", null, ["--fault-all"]),
        ("FaultAll", "FaultAll", []),
        ("Background", "Background", []),
        ("Replay", "Replay", []),
    ];

    private static readonly (string Order, int Threads)[] s_patterns = [("random", 1), ("random", 2), ("seq", 1), ("strided", 1)];

    private readonly int _mib = Option(options, "--mib", 256);
    private readonly int _rounds = Option(options, "--rounds", 5);
    private readonly string _folder = Directory.CreateTempSubdirectory("gm-bench-").FullName;

    private string Image => Path.Combine(_folder, "image");

    private string Record => Path.Combine(_folder, "touches");

    public int Run()
    {
        try
        {
            foreach (var program in new[] { "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Image, $"{_mib}");
            var table = new StringBuilder();
            table.AppendLine("| touches | handler | faults | p50 us | p99 us | first us | total ms | spread |").AppendLine("|---|---|---:|---:|---:|---:|---:|---:|");
            foreach (var pattern in s_patterns) Measure(pattern, table);
            Console.WriteLine(table);
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private void Measure((string Order, int Threads) pattern, StringBuilder table)
    {
        RecordTouches(pattern);
        var samples = s_handlers.ToDictionary(handler => handler.Name, _ => new List<Sample>(), StringComparer.Ordinal);
        for (var round = 0; round < _rounds; round++)
        {
            foreach (var handler in s_handlers) samples[handler.Name].Add(Once(handler, pattern));
        }

        foreach (var (name, all) in samples)
        {
            double Of(Func<Sample, double> figure) => Median(all.Select(figure));
            table.AppendLine(CultureInfo.InvariantCulture,
                $"| {pattern.Order}, {pattern.Threads} thread(s) | {name} | {Of(s => s.Faults):0} | {Of(s => s.P50):0.0} | {Of(s => s.P99):0.0} | {Of(s => s.First):0} | {Of(s => s.Total):0} | {Spread(all.Select(s => s.Total)):P0} |");
        }
    }

    private void RecordTouches((string Order, int Threads) pattern)
    {
        using var server = Ours("OnDemand", "--record", Record);
        Client(Path.Combine(_folder, "ours.sock"), pattern);
    }

    private Sample Once((string Name, string? Strategy, string[] Arguments) handler, (string Order, int Threads) pattern)
    {
        if (handler.Strategy is not null)
        {
            using var server = handler.Strategy == "Replay" ? Ours("Replay", "--replay", Record) : Ours(handler.Strategy);
            return Client(Path.Combine(_folder, "ours.sock"), pattern);
        }

        var socket = Path.Combine(_folder, "c.sock");
        File.Delete(socket);
        using var baseline = new HandlerProcess(Anywhere, Path.Combine(_folder, "uffd-handler"), [socket, Image, "--mode", "poll", .. handler.Arguments]);
        baseline.WaitFor(socket);
        return Client(socket, pattern);
    }

    private HandlerProcess Ours(string strategy, params string[] more)
    {
        var server = new HandlerProcess(Anywhere, "dotnet", [Environment.GetCommandLineArgs()[0], "serve", Path.Combine(_folder, "ours.sock"), Image, "--strategy", strategy, .. more]);
        server.Expect("ready");
        return server;
    }

    private Sample Client(string socket, (string Order, int Threads) pattern)
    {
        var output = Execute(Path.Combine(_folder, "uffd-client"), socket, $"{_mib}", "--order", pattern.Order, "--threads", $"{pattern.Threads}");
        using var json = JsonDocument.Parse(output);
        double Of(string name) => json.RootElement.GetProperty(name).GetDouble();
        return new Sample(Of("faults"), Of("fault_p50_us"), Of("fault_p99_us"), Of("first_us"), Of("total_ms"));
    }

    private sealed record Sample(double Faults, double P50, double P99, double First, double Total);
}
