using System.Diagnostics;
using System.Globalization;
using System.Text;
using GuestMemory.Core.Userfault;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// A VM that touches a scattered working set of an image that lies where every read takes 2 ms (slow-file.c), with readahead of 128 KiB: page
/// by page, with a replay of the recorded touches, and with a record that holds the pages; beside reading that record's file from end to end.
/// </summary>
internal sealed class WorkingSetScenario(string[] options)
{
    private readonly int _mib = Option(options, "--mib", 256);
    private readonly int _touches = Option(options, "--touches", 4096);
    private readonly int _rounds = Option(options, "--rounds", 5);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;

    private string Image => Path.Combine(_folder, "image");

    private string Record => Path.Combine(_folder, "touches");

    private string Pages => Path.Combine(_folder, "pages");

    private string ColdImage => Path.Combine(_folder, "cold-image");

    private string ColdPages => Path.Combine(_folder, "cold-pages");

    public int Run()
    {
        try
        {
            PublishHost();
            foreach (var program in new[] { "slow-file", "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Image, $"{_mib}");
            foreach (var mount in new[] { ColdImage, ColdPages }) File.WriteAllText(mount, "");
            _ = Serve(Image, UffdStrategy.OnDemand, replay: null, record: Record);
            _ = UffdRecord.MergeWithPages([Record], Pages, Image);
            var rows = new (string Name, Func<double> Measure, List<double> Figures)[]
            {
                ("C, poll", Baseline, []),
                ("GuestMemory, OnDemand", () => Serve(ColdImage, UffdStrategy.OnDemand, replay: null), []),
                ("GuestMemory, Replay of a record", () => Serve(ColdImage, UffdStrategy.Replay, Record), []),
                ("GuestMemory, Replay of a record with pages", () => Serve(ColdImage, UffdStrategy.Replay, ColdPages), []),
                ("dd of that record", Copy, []),
            };
            for (var round = 0; round < _rounds; round++)
            {
                foreach (var row in rows)
                {
                    row.Figures.Add(OnColdFiles(row.Measure));
                    Console.Error.WriteLine($"{row.Name}: {row.Figures[^1]:0} ms");
                }
            }

            var table = new StringBuilder("| | ms | beside dd |\n|---|---:|---:|\n");
            foreach (var (name, _, figures) in rows)
                table.AppendLine(CultureInfo.InvariantCulture, $"| {name} | {Median(figures):0} | {Ratio(figures, rows[^1].Figures):0.0} |");
            Console.WriteLine(table);
            if (_write is not null) WriteSection(_write, "working-set", $"{_touches} random pages of {_mib} MiB, touched once each, medians of {_rounds} rounds (dd's spread {Spread(rows[^1].Figures):P1}):\n\n{table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    /// <summary>Mounts image and record anew: nothing of them is in memory.</summary>
    private double OnColdFiles(Func<double> body)
    {
        using var image = Mount(Image, ColdImage);
        using var pages = Mount(Pages, ColdPages);
        return body();
    }

    private HandlerProcess Mount(string file, string mount)
    {
        var process = new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "slow-file"), [file, mount, "--readahead", $"{128 << 10}"]);
        process.Expect("ready");
        return process;
    }

    private double Serve(string image, UffdStrategy strategy, string? replay, string? record = null)
    {
        var socket = Path.Combine(_folder, "ours.sock");
        return WithHandler(
            new UffdHandlerOptions { SocketPath = socket, MemoryPath = image, Strategy = strategy, ReplayPath = replay, RecordPath = record },
            _ => Touch(socket));
    }

    private double Baseline()
    {
        var socket = Path.Combine(_folder, "c.sock");
        File.Delete(socket);
        using var handler = new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "uffd-handler"), [socket, ColdImage, "--mode", "poll", "--cold"]);
        handler.WaitFor(socket);
        return Touch(socket);
    }

    private double Touch(string socket)
    {
        using var client = UffdClient.Start(_folder, UffdClient.Anywhere, socket, _mib, "--touches", $"{_touches}", "--seed", "2");
        var milliseconds = UffdClient.Figure(client, "total_ms");
        client.WaitForExit();
        return milliseconds;
    }

    private double Copy()
    {
        var started = Stopwatch.GetTimestamp();
        Execute("dd", $"if={ColdPages}", "of=/dev/null", "bs=1M", "status=none");
        return Stopwatch.GetElapsedTime(started).TotalMilliseconds;
    }
}
