using System.Globalization;
using System.Text;
using System.Text.Json;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// Every strategy beside the C baseline in its modes: the latency of a fault, how many there were, the first page of a fresh handler,
/// and the time until all pages were touched, in rounds of all of them. Nothing is pinned but where it says so.
/// </summary>
internal sealed class StrategyScenario(string[] options)
{
    private const string Anywhere = "0,1";
    private const int SetPart = 8;

    private static readonly Handler[] s_handlers =
    [
        new("C poll"),
        new("OnDemand", "C poll"),
        new("C --window 65536"),
        new("Window", "C --window 65536"),
        new("C --fault-all"),
        new("FaultAll", "C --fault-all"),
        new("Background", "C --fault-all"),
        new("Replay", "C --fault-all"),
    ];

    private static readonly Handler[] s_sparseHandlers = [new("C poll --zero-detect"), new("OnDemand", "C poll --zero-detect"), new("C --fault-all"), new("FaultAll", "C --fault-all"), new("Background", "C --fault-all")];
    private static readonly Handler[] s_setHandlers = [new("C --fault-all"), new("Replay", "C --fault-all")];

    private static readonly (string Order, int Threads)[] s_patterns = [("random", 1), ("random", 2), ("seq", 1), ("seq", 2), ("strided", 1), ("strided", 2)];

    private readonly int[] _sizes = [.. (Text(options, "--mib") ?? "256").Split(',').Select(static size => int.Parse(size, CultureInfo.InvariantCulture))];
    private readonly int _rounds = Option(options, "--rounds", 5);
    private readonly string? _write = Text(options, "--write");
    // On tmpfs, so that reading a hole shows: it takes memory.
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;
    private readonly StringBuilder _figures = new("| MiB | figure | measured | to reach |\n|---:|---|---:|---:|\n");
    private readonly StringBuilder _table = new("| MiB | touches | handler | faults | p50 us | p99 us | first us | total ms | beside C's |\n|---:|---|---|---:|---:|---:|---:|---:|---:|\n");

    private string Record => Path.Combine(_folder, "touches");

    private string OurSocket => Path.Combine(_folder, "ours.sock");

    public int Run()
    {
        try
        {
            foreach (var program in new[] { "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            foreach (var mib in _sizes) Measure(mib);
            Console.WriteLine(_figures);
            Console.WriteLine(_table);
            if (_write is not null) WriteSection(_write, "strategies", $"Medians of {_rounds} rounds (of images over 256 MiB fewer, at least 3), a fresh handler each time:\n\n{_figures}\n{_table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private void Measure(int mib)
    {
        var image = Path.Combine(_folder, $"image{mib}");
        Execute(Path.Combine(_folder, "mkmem"), image, $"{mib}");
        var first = new Dictionary<string, double>(StringComparer.Ordinal);
        foreach (var (order, threads) in s_patterns)
        {
            var load = new Load(image, mib, order, threads);
            RecordTouches(load);
            var samples = Rounds(s_handlers, mib, _ => load);
            Add(load, $"{order}, {threads} thread{(threads > 1 ? "s" : "")}", s_handlers, samples);
            foreach (var handler in s_handlers.Where(static handler => handler.Beside is not null))
            {
                var later = Median(samples[handler.Name], s => s.First) - Median(samples[handler.Beside!], s => s.First);
                first[handler.Name] = Math.Max(later, first.GetValueOrDefault(handler.Name, double.NegativeInfinity));
            }

            if (order == "random") FiguresOf(load, samples);
        }

        Figure(mib, "first page: the most by which a strategy's came later than C's", string.Create(CultureInfo.InvariantCulture, $"{first.Values.Max() / 1000:0.0} ms ({first.MaxBy(static pair => pair.Value).Key})"), "3 ms");
        MeasureOneCpu(image, mib);
        MeasureSet(image, mib);
        File.Delete(image);
        MeasureSparse(mib);
    }

    private void FiguresOf(Load load, Dictionary<string, List<Sample>> samples)
    {
        var who = $"random, {load.Threads} thread{(load.Threads > 1 ? "s" : "")}: ";
        Figure(load.Mib, who + "Background's total beside C --fault-all's", RatioOf("Background", "C --fault-all", s => s.Total), "1.05");
        if (load.Threads > 1) return;
        Figure(load.Mib, who + "OnDemand's p50 and p99 beside C poll's", $"{RatioOf("OnDemand", "C poll", s => s.P50)}, {RatioOf("OnDemand", "C poll", s => s.P99)}", "1.05, 1.25");
        Figure(load.Mib, who + "Background's p50 and p99 of a fault beside OnDemand's", $"{RatioOf("Background", "OnDemand", s => s.P50)}, {RatioOf("Background", "OnDemand", s => s.P99)}", "1.00, 1.50");
        var gone = 1 - (Median(samples["Replay"], s => s.Faults) / Median(samples["OnDemand"], s => s.Faults));
        Figure(load.Mib, who + "Replay: faults gone", gone.ToString("P1", CultureInfo.InvariantCulture), "95 %");
        Figure(load.Mib, who + "Replay's total beside C --fault-all's", RatioOf("Replay", "C --fault-all", s => s.Total), "1.15");

        string RatioOf(string ours, string c, Func<Sample, double> figure) => Ratio(samples[ours].Select(figure), samples[c].Select(figure)).ToString("0.00", CultureInfo.InvariantCulture);
    }

    /// <summary>The handler with its filler on one CPU, the VMM on the other.</summary>
    private void MeasureOneCpu(string image, int mib)
    {
        var load = new Load(image, mib, "random", 1, HandlerCpu: "0", ClientCpu: "1");
        Handler[] handlers = [new("C poll"), new("OnDemand", "C poll"), new("Background")];
        var samples = Rounds(handlers, mib, _ => load);
        Add(load, "random, 1 thread, handler on one CPU", handlers, samples);
        Figure(mib, "handler and filler held to one CPU: Background's p99", string.Create(CultureInfo.InvariantCulture, $"{Median(samples["Background"], s => s.P99):0} us"), "200 us");
    }

    /// <summary>A VM that touches an eighth of its memory, beside C's bringing in all of an image that is no larger.</summary>
    private void MeasureSet(string image, int mib)
    {
        var set = new Load(Path.Combine(_folder, "set"), mib / SetPart, "random", 1);
        Execute(Path.Combine(_folder, "mkmem"), set.Image, $"{set.Mib}");
        var load = new Load(image, mib, "random", 1, Touches: mib * 256 / SetPart);
        RecordTouches(load);
        var samples = Rounds(s_setHandlers, mib, handler => handler.IsOurs ? load : set);
        Add(load, "an eighth, random, 1 thread", s_setHandlers, samples);
        File.Delete(set.Image);
    }

    private void MeasureSparse(int mib)
    {
        var load = new Load(Path.Combine(_folder, "sparse"), mib, "random", 1);
        var read = 0L;
        Handler? last = null;
        var samples = Rounds(s_sparseHandlers, mib, handler =>
        {
            if (last is { IsOurs: true }) read += Blocks(load.Image);
            last = handler;
            File.Delete(load.Image);
            using (var file = File.Create(load.Image)) file.SetLength((long)mib << 20);
            return load;
        });
        read += Blocks(load.Image);
        Add(load, "random, 1 thread, all holes", s_sparseHandlers, samples);
        Figure(mib, "all holes: OnDemand's total beside C's with ZEROPAGE, bytes of holes read", string.Create(CultureInfo.InvariantCulture, $"{Ratio(samples["OnDemand"].Select(s => s.Total), samples["C poll --zero-detect"].Select(s => s.Total)):0.00}, {read * 512}"), "1.00, 0");
        File.Delete(load.Image);
    }

    private static long Blocks(string file) => File.Exists(file) ? long.Parse(Execute("stat", "-c", "%b", file), CultureInfo.InvariantCulture) : 0;

    private Dictionary<string, List<Sample>> Rounds(Handler[] handlers, int mib, Func<Handler, Load> loadOf)
    {
        var samples = handlers.ToDictionary(static handler => handler.Name, static _ => new List<Sample>(), StringComparer.Ordinal);
        var rounds = Math.Max(3, _rounds * 256 / mib);
        for (var round = 0; round < rounds; round++)
        {
            foreach (var handler in handlers) samples[handler.Name].Add(Once(handler, loadOf(handler)));
        }

        return samples;
    }

    private void Add(Load load, string touches, Handler[] handlers, Dictionary<string, List<Sample>> samples)
    {
        foreach (var handler in handlers)
        {
            var all = samples[handler.Name];
            var beside = handler.Beside is { } c ? string.Create(CultureInfo.InvariantCulture, $"**{Ratio(all.Select(s => s.Total), samples[c].Select(s => s.Total)):0.00}**") : "";
            _table.AppendLine(CultureInfo.InvariantCulture,
                $"| {load.Mib} | {touches} | {handler.Name} | {Median(all, s => s.Faults):0} | {Median(all, s => s.P50):0.0} | {Median(all, s => s.P99):0.0} | {Median(all, s => s.First):0} | {Median(all, s => s.Total):0} | {beside} |");
            Console.Error.WriteLine($"{load.Mib} MiB, {touches}, {handler.Name}: {Median(all, s => s.Total):0} ms, spread {Spread(all.Select(s => s.Total)):P0}");
            touches = "";
        }
    }

    private void Figure(int mib, string name, string measured, string toReach) => _figures.AppendLine(CultureInfo.InvariantCulture, $"| {mib} | {name} | **{measured}** | {toReach} |");

    private void RecordTouches(Load load)
    {
        using var server = Ours(load, "OnDemand", "--record", Record);
        Client(OurSocket, load);
    }

    private Sample Once(Handler handler, Load load)
    {
        if (handler.IsOurs)
        {
            using var server = handler.Name == "Replay" ? Ours(load, "Replay", "--replay", Record) : Ours(load, handler.Name);
            return Client(OurSocket, load);
        }

        var socket = Path.Combine(_folder, "c.sock");
        File.Delete(socket);
        using var baseline = new HandlerProcess(load.HandlerCpu, Path.Combine(_folder, "uffd-handler"), [socket, load.Image, "--mode", "poll", .. handler.Name.Split(' ')[1..].Where(static word => word != "poll")]);
        baseline.WaitFor(socket);
        return Client(socket, load);
    }

    private HandlerProcess Ours(Load load, string strategy, params string[] more)
    {
        var server = new HandlerProcess(load.HandlerCpu, "dotnet", [Environment.GetCommandLineArgs()[0], "serve", OurSocket, load.Image, "--strategy", strategy, .. more]);
        server.Expect("ready");
        return server;
    }

    private Sample Client(string socket, Load load)
    {
        var output = Execute("taskset", ["-c", load.ClientCpu, Path.Combine(_folder, "uffd-client"), socket, $"{load.Mib}", "--order", load.Order, "--threads", $"{load.Threads}", "--touches", $"{load.Touches}"]);
        using var json = JsonDocument.Parse(output);
        double Of(string name) => json.RootElement.GetProperty(name).GetDouble();
        return new Sample(Of("faults"), Of("fault_p50_us"), Of("fault_p99_us"), Of("first_us"), Of("total_ms"));
    }

    private static double Median(List<Sample> samples, Func<Sample, double> figure) => BenchTools.Median(samples.Select(figure));

    private sealed record Handler(string Name, string? Beside = null)
    {
        public bool IsOurs => !Name.StartsWith("C ", StringComparison.Ordinal);
    }

    private sealed record Load(string Image, int Mib, string Order, int Threads, int Touches = 0, string HandlerCpu = Anywhere, string ClientCpu = Anywhere);

    private sealed record Sample(double Faults, double P50, double P99, double First, double Total);
}
