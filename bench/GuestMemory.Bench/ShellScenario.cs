using System.Diagnostics;
using System.Globalization;
using System.Text;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// What the shell adds: Read-GuestMemory to a file beside cp of the same bytes, both on tmpfs, and single values in a loop beside a
/// cmdlet of PowerShell itself, in alternating pairs. A row in which the baseline's own spread is over 5 % is void and measured again.
/// </summary>
internal sealed class ShellScenario(string[] options)
{
    private const int Attempts = 4;

    private static readonly (string Name, string Kind, bool HalfZero)[] s_copies =
    [
        ("a file's memory", "file", false),
        ("the same, half of it zeros", "file", true),
        ("anonymous memory", "anonymous", false),
        ("a memfd", "memfd", false),
    ];

    private static readonly (string Name, string Kind, bool Space)[] s_calls =
    [
        ("a region, anonymous", "anonymous", false),
        ("an address space, anonymous", "anonymous", true),
        ("a region, a file's", "file", false),
    ];

    private readonly int _mib = Option(options, "--mib", 1024);
    private readonly int _pairs = Option(options, "--pairs", 9);
    private readonly int _calls = Option(options, "--calls", 1_000_000);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-{Environment.ProcessId}").FullName;

    public int Run()
    {
        try
        {
            var table = new StringBuilder("| memory to a file | cp ms | cp --sparse=never ms | GuestMemory ms | ratio to cp | to reach | extra MiB |\n|---|---:|---:|---:|---:|---:|---:|\n");
            foreach (var copy in s_copies) Copy(copy, table);
            table.Append("\n| one value | Get-Random us | Read-GuestMemory us | ratio | to reach us |\n|---|---:|---:|---:|---:|\n");
            foreach (var call in s_calls) Call(call, table);
            Console.WriteLine(table);
            if (_write is not null) WriteSection(_write, "shell", $"{_mib} MiB; {_calls} calls; {_pairs} alternating pairs, medians:\n\n{table}");
            return 0;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private string Source => Path.Combine(_folder, "source");

    private string Target => Path.Combine(_folder, "target");

    private void Copy((string Name, string Kind, bool HalfZero) row, StringBuilder table)
    {
        MakeSource(row.HalfZero);
        using var shell = new Shell(Source, (long)_mib << 20);
        shell.Ask($"map {row.Kind}");
        if (row.Kind != "file") shell.Ask("fill");
        var extra = new List<double>();
        for (var attempt = 1; ; attempt++)
        {
            List<double> plain = [], never = [], ours = [];
            // The first pair is not measured: what is compiled on first use is another figure. Its memory counts, though: buffers are kept.
            for (var pair = -1; pair < _pairs; pair++)
            {
                var cp = Timed("cp", Source, Target);
                var dense = Timed("cp", "--sparse=never", Source, Target);
                var figures = Numbers(shell.Ask($"copy {Target}"));
                if (pair < 0 && !Same()) throw new InvalidOperationException($"{row.Name}: the copy differs.");
                File.Delete(Target);
                extra.Add(figures[1]);
                if (pair < 0) continue;
                plain.Add(cp);
                never.Add(dense);
                ours.Add(figures[0]);
            }

            var spread = Spread(plain);
            Console.Error.WriteLine($"{row.Name}: cp {Median(plain):0} ms (spread {spread:P1}), ours {Median(ours):0} ms");
            if (spread > AllowedSpread && attempt < Attempts) continue;
            table.AppendLine(CultureInfo.InvariantCulture, $"| {row.Name} | {Median(plain):0} | {Median(never):0} | {Median(ours):0} | **{Ratio(ours, plain):0.00}**{Remark("cp", spread)} | 1.30 | {extra.Max():0.0} |");
            return;
        }
    }

    private void Call((string Name, string Kind, bool Space) row, StringBuilder table)
    {
        using var shell = new Shell(Source, 1 << 20);
        shell.Ask($"map {row.Kind}");
        if (row.Space) shell.Ask("space");
        var count = _calls / _pairs;
        for (var attempt = 1; ; attempt++)
        {
            List<double> other = [], ours = [];
            for (var pair = -1; pair < _pairs; pair++)
            {
                var random = Numbers(shell.Ask($"other {count}"))[0];
                var own = Numbers(shell.Ask($"call {count}"))[0];
                if (pair < 0) continue;
                other.Add(random);
                ours.Add(own);
            }

            var spread = Spread(other);
            Console.Error.WriteLine($"{row.Name}: Get-Random {Median(other):0.0} us (spread {spread:P1}), ours {Median(ours):0.0} us");
            if (spread > AllowedSpread && attempt < Attempts) continue;
            table.AppendLine(CultureInfo.InvariantCulture, $"| {row.Name} | {Median(other):0.0} | {Median(ours):0.0} | **{Ratio(ours, other):0.00}**{Remark("Get-Random", spread)} | 60 |");
            return;
        }
    }

    private static string Remark(string baseline, double spread) => spread > AllowedSpread ? $" (void: {baseline}'s own spread {spread:P1})" : "";

    /// <summary>Random bytes, or every other 64 KiB of them; no holes, so that cp has everything to read.</summary>
    private void MakeSource(bool halfZero)
    {
        var random = new Random(1);
        var block = new byte[128 << 10];
        using var file = File.Create(Source);
        for (var i = 0; i < _mib * 8; i++)
        {
            random.NextBytes(block);
            if (halfZero) Array.Clear(block, 0, block.Length / 2);
            file.Write(block);
        }
    }

    /// <summary>cp into a place where nothing is, as the cmdlet writes.</summary>
    private double Timed(string program, params string[] arguments)
    {
        var watch = Stopwatch.StartNew();
        Execute(program, arguments);
        var elapsed = watch.Elapsed.TotalMilliseconds;
        File.Delete(Target);
        return elapsed;
    }

    private bool Same()
    {
        using var process = Process.Start("cmp", [Source, Target]);
        process.WaitForExit();
        return process.ExitCode == 0;
    }

    private static double[] Numbers(string line) => [.. line.Split(' ').Select(text => double.Parse(text, CultureInfo.InvariantCulture))];

    /// <summary>A pwsh with the module, which answers a line with a line.</summary>
    private sealed class Shell : IDisposable
    {
        private readonly Process _process;

        public Shell(string source, long size)
        {
            // As a .NET tool PowerShell is an assembly.
            var pwsh = Environment.GetEnvironmentVariable("PWSH") ?? "pwsh";
            string[] command = pwsh.EndsWith(".dll", StringComparison.Ordinal) ? ["dotnet", pwsh] : [pwsh];
            _process = Process.Start(new ProcessStartInfo(command[0],
                [.. command[1..], "-NoProfile", "-NonInteractive", "-File", Path.Combine(AppContext.BaseDirectory, "shell.ps1"), Manifest(), source, $"{size}"])
            {
                UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true,
            })!;
        }

        public string Ask(string line)
        {
            _process.StandardInput.WriteLine(line);
            return _process.StandardOutput.ReadLine() is { Length: > 0 } answer ? answer : throw new InvalidOperationException($"The shell did not answer '{line}'.");
        }

        public void Dispose()
        {
            _process.StandardInput.Close();
            if (!_process.WaitForExit(10_000)) _process.Kill();
            _process.Dispose();
        }
    }
}
