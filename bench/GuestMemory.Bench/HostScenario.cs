using System.Diagnostics;
using System.Globalization;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// The handler in a process of its own, published as Package does it and started as the library starts it: what supervisor and
/// worker hold, how long the first VM of a fresh one waits for its first page, and what the death of a worker costs.
/// </summary>
internal sealed class HostScenario(string[] options)
{
    private const int SmallMib = 16;
    private const int FaultsBeforeKill = 1000;
    private const int CrashTouches = 32768;

    private readonly int _mib = Option(options, "--mib", 1024);
    private readonly int _vms = Option(options, "--vms", 50);
    private readonly int _rounds = Option(options, "--rounds", 9);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;
    private readonly StringBuilder _table = new("| figure | measured | to reach |\n|---|---:|---:|\n");

    private string Image => Path.Combine(_folder, "image");

    private string Socket => Path.Combine(_folder, "ours.sock");

    private string Touches => Path.Combine(_folder, "touches");

    public int Run()
    {
        try
        {
            PublishHost();
            foreach (var program in new[] { "uffd-handler", "uffd-client", "mkmem" }) Compile(_folder, program, "-pthread");
            Execute(Path.Combine(_folder, "mkmem"), Image, $"{_mib}");
            MeasureMemory();
            MeasureFirstPages();
            MeasureSwitch("whose worker is killed", static handler =>
            {
                using var worker = Process.GetProcessById(handler.WorkerProcessId);
                worker.Kill();
            });
            MeasureSwitch("that is handed to a new program", static handler => handler.Upgrade(TimeSpan.FromMinutes(1)));
            if (_write is not null) WriteSection(_write, "host", $"Images of {_mib} MiB, medians of {_rounds} rounds:\n\n{_table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private void MeasureMemory() => Serve(UffdStrategy.Background, handler =>
    {
        const string Target = "64 MiB each";
        var clients = new List<Process>();
        try
        {
            MemoryRow("private memory, no VM", Memory(handler), Target);
            Restore(_mib);
            var one = Memory(handler);
            MemoryRow($"the same, a VM of {_mib} MiB restored", one, Target);
            for (var vm = 0; vm < _vms; vm++) Restore(SmallMib);
            var all = Memory(handler);
            MemoryRow($"the same, and {_vms} VMs of {SmallMib} MiB", all, "");
            double Each(Func<(double Private, double State), double> part) => all.Zip(one, (more, less) => part(more) - part(less)).Sum() / _vms;
            var bits = SmallMib * 256 * 2 / 8192.0;
            Row("each of those VMs", string.Create(CultureInfo.InvariantCulture,
                $"worker {(all[0].Private - one[0].Private) / _vms:0.0} KiB, supervisor {(all[1].Private - one[1].Private) / _vms:0.0} KiB; {Each(part => part.State):0.0} KiB of that are its state"),
                string.Create(CultureInfo.InvariantCulture, $"100 KiB and {bits:0.0} KiB of bits"));
        }
        finally
        {
            foreach (var client in clients)
            {
                client.Kill();
                client.Dispose();
            }
        }

        void Restore(int mib)
        {
            clients.Add(UffdClient.Start(_folder, UffdClient.Anywhere, Socket, mib, "--stay"));
            UffdClient.Figure(clients[^1], "total_ms");
        }
    });

    private void MeasureFirstPages()
    {
        Serve(UffdStrategy.OnDemand, _ => FirstTouch(Socket, _mib * 16), record: Touches);
        foreach (var strategy in new[] { UffdStrategy.OnDemand, UffdStrategy.Window, UffdStrategy.FaultAll, UffdStrategy.Background, UffdStrategy.Replay })
        {
            List<double> ours = [], second = [], baseline = [];
            for (var round = 0; round < _rounds; round++)
            {
                baseline.Add(BaselineFirstTouch(strategy == UffdStrategy.FaultAll ? ["--fault-all"] : []));
                Serve(strategy, _ =>
                {
                    ours.Add(FirstTouch(Socket, 1));
                    second.Add(FirstTouch(Socket, 1));
                }, replay: strategy == UffdStrategy.Replay ? Touches : null);
            }

            var difference = Median(ours.Zip(baseline, (own, c) => own - c)) / 1000;
            Row($"first page of a fresh handler, {strategy}", string.Create(CultureInfo.InvariantCulture, $"{Median(ours):0} us, C {Median(baseline):0} us: **{difference:+0.00;-0.00} ms** (its second VM {Median(second):0} us)"), "C + 3 ms");
        }
    }

    private void MeasureSwitch(string what, Action<UffdHandler> act)
    {
        var longest = new List<double>();
        for (var round = 0; round < _rounds; round++)
        {
            Serve(UffdStrategy.OnDemand, handler =>
            {
                using var client = UffdClient.Start(_folder, UffdClient.Anywhere, Socket, _mib, "--touches", $"{CrashTouches}", "--image", Image);
                while (handler.FaultCount < FaultsBeforeKill) Thread.Sleep(1);
                if (client.HasExited) throw new InvalidOperationException("The client was done before its worker could be changed.");
                act(handler);
                longest.Add(UffdClient.Figure(client, "max_us") / 1000);
                if (handler.WorkerCount != 2) throw new InvalidOperationException($"There were {handler.WorkerCount} workers.");
            });
        }

        Row($"longest touch of a VM {what} during its restore", string.Create(CultureInfo.InvariantCulture, $"{Median(longest):0} ms ({longest.Min():0} to {longest.Max():0})"), "");
    }

    private void Serve(UffdStrategy strategy, Action<UffdHandler> body, string? record = null, string? replay = null) => _ = WithHandler(
        new UffdHandlerOptions { SocketPath = Socket, MemoryPath = Image, Strategy = strategy, RecordPath = record, ReplayPath = replay },
        handler =>
        {
            body(handler);
            return true;
        });

    private double BaselineFirstTouch(string[] arguments)
    {
        var socket = Path.Combine(_folder, "c.sock");
        File.Delete(socket);
        using var handler = new HandlerProcess(UffdClient.Anywhere, Path.Combine(_folder, "uffd-handler"), [socket, Image, "--mode", "poll", .. arguments]);
        handler.WaitFor(socket);
        return FirstTouch(socket, 1);
    }

    private double FirstTouch(string socket, int touches)
    {
        using var client = UffdClient.Start(_folder, UffdClient.Anywhere, socket, _mib, "--touches", $"{touches}");
        return UffdClient.Figure(client, "first_us");
    }

    /// <summary>Of worker and supervisor, in KiB: what no other process has, and its share of the VMs' states, without the image; and that share.</summary>
    private (double Private, double State)[] Memory(UffdHandler handler) => [MemoryOf(handler.WorkerProcessId), MemoryOf(handler.ProcessId)];

    private (double Private, double State) MemoryOf(int process)
    {
        double own = 0, state = 0;
        var mapping = "";
        foreach (var line in File.ReadLines($"/proc/{process}/smaps"))
        {
            var fields = line.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (!fields[0].EndsWith(':')) mapping = line;
            else if (mapping.EndsWith(Image, StringComparison.Ordinal)) continue;
            else if (mapping.Contains("/memfd:uffd-state", StringComparison.Ordinal)) state += fields[0] is "Pss:" ? int.Parse(fields[1], CultureInfo.InvariantCulture) : 0;
            else if (fields[0] is "Private_Clean:" or "Private_Dirty:") own += int.Parse(fields[1], CultureInfo.InvariantCulture);
        }

        return (own + state, state);
    }

    private void MemoryRow(string figure, (double Private, double State)[] memory, string target) =>
        Row(figure, string.Create(CultureInfo.InvariantCulture, $"worker {memory[0].Private / 1024:0.0} MiB, supervisor {memory[1].Private / 1024:0.0} MiB"), target);

    private void Row(string figure, string measured, string target)
    {
        var row = $"| {figure} | {measured} | {target} |";
        Console.WriteLine(row);
        _table.AppendLine(row);
    }
}
