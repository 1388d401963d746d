using System.Globalization;
using System.Text;
using GuestMemory.Core.Userfault;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// VMs whose image lies where every read takes 2 ms (slow-file.c, a file system in user space), and none of whose pages is in memory: one
/// alone, and many at once, served by one handler; beside C handlers, one a VM. A handler that waits for one VM's page before it looks at
/// another's shows here.
/// </summary>
internal sealed class ColdScenario(string[] options)
{
    private readonly int _mib = Option(options, "--mib", 256);
    private readonly int _vms = Option(options, "--vms", 8);
    private readonly int _touches = Option(options, "--touches", 500);
    private readonly int _rounds = Option(options, "--rounds", 9);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;

    private string Mount => Path.Combine(_folder, "cold");

    public int Run()
    {
        try
        {
            PublishHost();
            foreach (var program in new[] { "slow-file", "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Path.Combine(_folder, "image"), $"{_mib}");
            File.WriteAllText(Mount, "");
            var rows = new (string Name, Func<int, double[]> Measure, int Vms, List<double[]> Figures)[]
            {
                ("C, poll", Baseline, 1, []), ("C, poll, a handler each", Baseline, _vms, []), ("GuestMemory", Ours, 1, []), ("GuestMemory", Ours, _vms, []),
            };
            for (var round = 0; round < _rounds; round++)
            {
                foreach (var row in rows) row.Figures.Add(OnColdImage(() => row.Measure(row.Vms)));
            }

            var table = new StringBuilder("| handler | VMs | p50 ms | p99 ms | max ms |\n|---|---:|---:|---:|---:|\n");
            foreach (var (name, _, vms, figures) in rows)
                table.AppendLine(CultureInfo.InvariantCulture, $"| {name} | {vms} | {Of(figures, 0):0.00} | {Of(figures, 1):0.00} | {Of(figures, 2):0.00} |");
            var spread = Spread(rows[0].Figures.Select(static figures => figures[1]));
            var remark = spread > AllowedSpread ? $"void: C's own spread {spread:P1}" : $"C's spread {spread:P1}";
            table.AppendLine(CultureInfo.InvariantCulture, $"| **p99 of {_vms} VMs beside one's** ({remark}) | | | **{Ratio(rows[3].Figures.Select(static figures => figures[1]), rows[2].Figures.Select(static figures => figures[1])):0.00}**, C {Ratio(rows[1].Figures.Select(static figures => figures[1]), rows[0].Figures.Select(static figures => figures[1])):0.00}; to reach 1.50 | |");
            Console.WriteLine(table);
            if (_write is not null)
                WriteSection(_write, "cold", $"{_mib} MiB, {_touches} random pages a VM, of several VMs the one with the largest p99, medians of {_rounds} rounds:\n\n{table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }

        static double Of(List<double[]> figures, int at) => Median(figures.Select(figure => figure[at]));
    }

    /// <summary>Mounts the image anew: nothing of it is in memory.</summary>
    private T OnColdImage<T>(Func<T> body)
    {
        using var file = new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "slow-file"), [Path.Combine(_folder, "image"), Mount]);
        file.Expect("ready");
        return body();
    }

    private double[] Ours(int vms)
    {
        var socket = Path.Combine(_folder, "ours.sock");
        return WithHandler(new UffdHandlerOptions { SocketPath = socket, MemoryPath = Mount, Strategy = UffdStrategy.OnDemand, NoReadAhead = true }, _ => Touch(Enumerable.Repeat(socket, vms)));
    }

    private double[] Baseline(int vms)
    {
        var sockets = Enumerable.Range(0, vms).Select(vm => Path.Combine(_folder, $"c{vm}.sock")).ToArray();
        var handlers = new List<HandlerProcess>();
        try
        {
            foreach (var socket in sockets)
            {
                File.Delete(socket);
                handlers.Add(new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "uffd-handler"), [socket, Mount, "--mode", "poll", "--cold"]));
            }

            for (var i = 0; i < vms; i++) handlers[i].WaitFor(sockets[i]);
            return Touch(sockets);
        }
        finally
        {
            foreach (var handler in handlers) handler.Dispose();
        }
    }

    /// <summary>p50, p99 and maximum, in milliseconds, of the VM with the largest p99.</summary>
    private double[] Touch(IEnumerable<string> sockets)
    {
        var clients = sockets.Select((socket, vm) => UffdClient.Start(_folder, UffdClient.Anywhere, socket, _mib, "--touches", $"{_touches}", "--seed", $"{vm + 2}")).ToArray();
        var figures = clients.Select(static client => UffdClient.Figures(client, "p50_us", "p99_us", "max_us")).MaxBy(static figures => figures[1])!;
        foreach (var client in clients)
        {
            client.WaitForExit();
            client.Dispose();
        }

        return [.. figures.Select(static microseconds => microseconds / 1000)];
    }
}
