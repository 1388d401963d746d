using System.Diagnostics;
using System.Globalization;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Userfault;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Bench;

/// <summary>
/// Exports of memory that is written meanwhile, step by step as live-snapshot.c does it: of a VM of this process, of a VM of a handler in this process, and of one of a handler in
/// its own. The VMs of the handlers are live-snapshot.c too.
/// </summary>
internal sealed class LiveRows : RowSet
{
    private const int Mib = 1024;
    private const int WrittenPermille = 50;

    // MADV_NOHUGEPAGE.
    private const int NoHugePage = 15;

    private string _folder = "";
    private Subject[] _subjects = [];

    public override string Name => "live";

    public override string Setup => "1 GiB in pages of 4 KiB, all there, written by a thread meanwhile, the image on tmpfs";

    public override string Program => "live-snapshot";

    public override string[] Filters => [""];

    public override string Mebibytes => $"{Mib}";

    public override int Repetitions => 1;

    public override string Cpus => "0-1";

    public override Row[] Rows { get; } =
    [
        .. RowsOf("a VM of this shell", "anon"),
        .. RowsOf("a handler in this process", "memfd"),
        .. RowsOf("a handler's own process", "memfd"),
        new("a handler's own process: the VMM stopped, from the stop to the go", null, "", 1),
    ];

    protected override int WarmUps => 1;

    public override string Remark(long allocated) => "";

    protected override double[] Measure()
    {
        // Not where the table alone is wanted.
        if (_subjects.Length == 0) Open();
        var figures = new List<double>();
        foreach (var subject in _subjects)
        {
            var settled = Export(subject, settles: true, isStopped: false);
            var unsettled = Export(subject, settles: false, isStopped: false);
            figures.AddRange([settled.Protect, settled.Pause, unsettled.Pause, settled.Sweep, settled.WriterP99]);
        }

        figures.Add(Export(_subjects[^1], settles: true, isStopped: true).Pause);
        return [.. figures];
    }

    private static Row[] RowsOf(string kind, string baseline) =>
    [
        new($"{kind}: protecting all of it, at once in C, while it runs in ours", $"\"{baseline}_at_once\"", "", 1),
        new($"{kind}: the pause, 5 % written since", $"\"{baseline}_pause\"", "5 ms", 1),
        new($"{kind}: the pause, 5 % written in the last moment before it", $"\"{baseline}_unsettled_pause\"", "1.20", 1),
        new($"{kind}: copying the rest", $"\"{baseline}_sweep\"", "", 1),
        new($"{kind}: 99th percentile of a write meanwhile", $"\"{baseline}_writer_p99\"", "", 1, Tail: true),
    ];

    private Figures Export(Subject subject, bool settles, bool isStopped)
    {
        var path = Path.Combine(_folder, "output");
        using var output = File.OpenHandle(path, FileMode.Create, FileAccess.ReadWrite, options: FileOptions.DeleteOnClose);
        RandomAccess.SetLength(output, (long)Mib << 20);
        using var export = subject.Begin(output);
        var protect = TimeOf(() => export.Protect(CancellationToken.None));
        subject.Write(WrittenPermille);
        subject.Run();
        // It protects again what was written, and so on, as it does after its first pass.
        if (settles) export.Protect(CancellationToken.None);
        var pause = TimeOf(() =>
        {
            using var stopped = isStopped ? StoppedProcess.Stop(subject.ProcessId, TimeSpan.FromSeconds(10)) : null;
            export.Take();
        });
        var sweep = TimeOf(() => export.Sweep(null, CancellationToken.None));
        return new Figures(protect, pause, sweep, subject.Stop());
    }

    private static double TimeOf(Action body)
    {
        var start = Stopwatch.GetTimestamp();
        body();
        return (Stopwatch.GetTimestamp() - start) * (1e9 / Stopwatch.Frequency);
    }

    private void Open()
    {
        _folder = Directory.CreateDirectory($"/dev/shm/gm-bench-live-{Environment.ProcessId}").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Close();
        var program = BenchTools.Compile(_folder, Program, "-pthread");
        var image = Path.Combine(_folder, "image");
        using (var file = File.Create(image)) file.SetLength((long)Mib << 20);
        _subjects = [new GuestSubject(), new ServedSubject(_folder, program, image, isProcess: false), new ServedSubject(_folder, program, image, isProcess: true)];
    }

    private void Close()
    {
        foreach (var subject in _subjects) subject.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    private sealed record Figures(double Protect, double Pause, double Sweep, double WriterP99);

    /// <summary>A VM: what writes its memory, and how it is exported.</summary>
    private abstract class Subject : IDisposable
    {
        public virtual int ProcessId => Environment.ProcessId;

        public abstract UffdLiveExport Begin(SafeFileHandle output);

        /// <summary>Writes so many of a thousand pages, at random.</summary>
        public abstract void Write(int permille);

        /// <summary>Has a thread write.</summary>
        public abstract void Run();

        /// <summary>Ends that; the 99th percentile of a write in nanoseconds.</summary>
        public abstract double Stop();

        public abstract void Dispose();
    }

    /// <summary>A VM of this process, whose memory a thread of this process writes; each of its writes is a call of the kernel besides.</summary>
    private sealed class GuestSubject : Subject
    {
        private readonly GuestRegionMmap _region;
        private readonly KvmVm _vm;
        private readonly List<double> _latencies = [];
        private Random _random = new(1);
        private Thread? _writer;
        private volatile bool _isOver;

        public GuestSubject()
        {
            _region = new GuestRegionMmap(new MmapRegionBuilder((ulong)Mib << 20).Build(), new GuestAddress(0));
            _ = Mman.TryAdvise((nint)_region.GetMmapRegion().HostAddress, (nuint)Mib << 20, NoHugePage);
            _vm = new KvmVm(GuestMemoryMmap.FromRegions([_region]));
            Write(1000);
        }

        public override UffdLiveExport Begin(SafeFileHandle output) => new LocalMemoryExport(_vm, output, CancellationToken.None);

        public override void Write(int permille)
        {
            for (ulong page = 0; page < (ulong)Mib * 256; page++)
            {
                if (_random.Next(1000) < permille) _vm.Memory.WriteObject(new GuestAddress((page * HostPage.Size) + 8), page + 1);
            }
        }

        public override void Run()
        {
            _isOver = false;
            _latencies.Clear();
            _writer = new Thread(() =>
            {
                var random = new Random(2);
                while (!_isOver)
                {
                    var address = new GuestAddress((ulong)random.Next(Mib * 256) * HostPage.Size);
                    _latencies.Add(TimeOf(() => _vm.Memory.WriteObject(address, 1UL)));
                    Thread.Sleep(TimeSpan.FromMicroseconds(20));
                }
            });
            _writer.Start();
        }

        public override double Stop()
        {
            _isOver = true;
            _writer!.Join();
            _latencies.Sort();
            return _latencies.Count == 0 ? 0 : _latencies[_latencies.Count * 99 / 100];
        }

        public override void Dispose()
        {
            _vm.Dispose();
            _region.Dispose();
        }
    }

    /// <summary>A VM of a handler.</summary>
    private sealed class ServedSubject : Subject
    {
        private readonly UffdHandler _handler;
        private readonly Process _vmm;
        private readonly int _id;

        public ServedSubject(string folder, string program, string image, bool isProcess)
        {
            var options = new UffdHandlerOptions { SocketPath = Path.Combine(folder, isProcess ? "process.sock" : "local.sock"), MemoryPath = image, TrackDirty = true, Strategy = UffdStrategy.FaultAll };
            _handler = isProcess ? UffdHandler.StartProcess(options) : UffdHandler.Start(options);
            _vmm = Process.Start(new ProcessStartInfo(program, ["vmm", options.SocketPath, $"{Mib}"]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
            while (_handler.GetVms().Count == 0) Thread.Sleep(5);
            _id = _handler.GetVms()[0].Id;
            _ = Ask("write 1000");
        }

        public override int ProcessId => _vmm.Id;

        public override UffdLiveExport Begin(SafeFileHandle output) => _handler.BeginLive(_id, output);

        public override void Write(int permille) => Ask($"write {permille}");

        public override void Run() => Ask("run");

        public override double Stop() => Ask("stop");

        public override void Dispose()
        {
            _vmm.Kill();
            _vmm.WaitForExit();
            _vmm.Dispose();
            _handler.Stop();
            _handler.Dispose();
        }

        private double Ask(string what)
        {
            _vmm.StandardInput.WriteLine(what);
            _vmm.StandardInput.Flush();
            return double.Parse(_vmm.StandardOutput.ReadLine() ?? throw new InvalidOperationException("The VMM ended."), CultureInfo.InvariantCulture);
        }
    }
}
