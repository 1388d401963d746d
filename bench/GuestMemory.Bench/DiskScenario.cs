using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json;
using GuestMemory.Core.VhostUser;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>
/// Requests a second of a virtio-blk disk over vhost-user, beside the export of qemu-storage-daemon, by a front end without a VM
/// (vhost-client.c) and on an image that is in the page cache: what is measured is the way from the guest to the file and back. Beside it stands
/// QEMU's own file driver without a device, by "qemu-img bench": a disk of QEMU's own gives its guest at most as much.
/// </summary>
internal sealed class DiskScenario(string[] options)
{
    private readonly int _mib = Option(options, "--mib", 512);
    private readonly int _rounds = Option(options, "--rounds", 9);
    private readonly int _milliseconds = Option(options, "--milliseconds", 1000);
    private readonly string? _write = Text(options, "--write");
    private readonly string _folder = Directory.CreateTempSubdirectory("gm-bench-").FullName;

    private string Image => Path.Combine(_folder, "image");

    public int Run()
    {
        try
        {
            Compile(_folder, "vhost-client");
            Fill();
            var ours = Path.Combine(_folder, "ours.sock");
            using var server = Start("dotnet", Environment.GetCommandLineArgs()[0], "serve-disk", ours, Image);
            server.StandardOutput.ReadLine();
            using var threads = StartDaemon("threads");
            using var uring = StartDaemon("io_uring");
            Execute("sync");

            var table = new StringBuilder("| requests | qemu-storage-daemon, threads | io_uring | QEMU's file driver alone, threads | io_uring | GuestMemory | beside the better daemon | beside the better driver | marked in a log, beside unmarked |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
            foreach (var (kind, bytes, depth) in from kind in new[] { "read", "write" } from bytes in new[] { 4096, 65536 } from depth in new[] { 1, 32 } select (kind, bytes, depth))
            {
                var (own, byThreads, byUring, marked) = (new List<double>(), new List<double>(), new List<double>(), new List<double>());
                var (driverThreads, driverUring) = (new List<double>(), new List<double>());
                for (var round = 0; round < _rounds; round++)
                {
                    byThreads.Add(Measure(Socket("threads"), kind, bytes, depth));
                    byUring.Add(Measure(Socket("io_uring"), kind, bytes, depth));
                    driverThreads.Add(MeasureDriver("threads", kind, bytes, depth));
                    driverUring.Add(MeasureDriver("io_uring", kind, bytes, depth));
                    own.Add(Measure(ours, kind, bytes, depth));
                    // Only reading writes to the memory of the guest.
                    if (kind == "read") marked.Add(Measure(ours, kind, bytes, depth, "--log"));
                }

                var better = Better(byThreads, byUring);
                var driver = Better(driverThreads, driverUring);
                var cost = marked.Count == 0 ? "" : Ratio(own, marked).ToString("0.00", CultureInfo.InvariantCulture);
                table.AppendLine(CultureInfo.InvariantCulture, $"| {kind} {bytes >> 10} KiB, {depth} at once | {Median(byThreads):#,0} | {Median(byUring):#,0} | {Median(driverThreads):#,0} | {Median(driverUring):#,0} | {Median(own):#,0} | **{Ratio(own, better):0.00}**{Void(better)} | {Ratio(own, driver):0.00}{Void(driver)} | {cost} |");
            }

            Console.WriteLine(table);
            if (_write is not null) WriteSection(_write, "disk", $"An image of {_mib} MiB, requests a second at random places, medians of {_rounds} alternating rounds; to reach: 0.90 of the better one, and 1.05 of the time of an unmarked request:\n\n{table}");
            threads.Kill();
            uring.Kill();
            server.StandardInput.Close();
            server.WaitForExit();
            return server.ExitCode;
        }
        finally
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    /// <summary>The back end alone in its process, until its input ends.</summary>
    public static int Serve(string socket, string image)
    {
        using var disk = VhostUserDisk.Start(new VhostUserDiskOptions { Name = "bench", SocketPath = socket, ImagePath = image });
        Console.WriteLine("ready");
        while (Console.In.Read() >= 0)
        {
        }

        if (disk.Error is { } error) Console.Error.WriteLine(error);
        return disk.Error is null ? 0 : 1;
    }

    private string Socket(string kind) => Path.Combine(_folder, $"{kind}.sock");

    private Process StartDaemon(string kind)
    {
        var daemon = Start("qemu-storage-daemon", "--blockdev", $"driver=file,node-name=image,filename={Image},aio={kind},locking=off",
            "--export", $"type=vhost-user-blk,id=export,node-name=image,addr.type=unix,addr.path={Socket(kind)},writable=on");
        for (var i = 0; i < 2000 && !File.Exists(Socket(kind)) && !daemon.HasExited; i++) Thread.Sleep(5);
        return daemon;
    }

    private static List<double> Better(List<double> one, List<double> other) => Median(one) > Median(other) ? one : other;

    private static string Void(List<double> baseline) => Spread(baseline) > AllowedSpread
        ? string.Create(CultureInfo.InvariantCulture, $" (void: the baseline's own spread {Spread(baseline):P1})") : "";

    private static Process Start(string program, params string[] arguments) =>
        Process.Start(new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;

    private double Measure(string socket, string kind, int bytes, int depth, params string[] further)
    {
        using var json = JsonDocument.Parse(Execute(Path.Combine(_folder, "vhost-client"),
            [socket, kind, "--bytes", $"{bytes}", "--depth", $"{depth}", "--seconds", (_milliseconds / 1000.0).ToString(CultureInfo.InvariantCulture), .. further]));
        return json.RootElement.GetProperty("requests_s").GetDouble();
    }

    /// <summary>
    /// Requests a second of the file driver that QEMU, qemu-storage-daemon and qemu-img share, in one process and without a virtqueue. The places follow each other by
    /// a prime number of requests, and so none is near the one before.
    /// </summary>
    private double MeasureDriver(string kind, string access, int bytes, int depth)
    {
        const int Probe = 500;
        var rate = Probe / Run(Probe);
        var count = Math.Clamp((int)(rate * _milliseconds / 1000), Probe, 100_000_000);
        return count / Run(count);

        double Run(int requests)
        {
            string[] writes = access == "write" ? ["-w"] : [];
            var output = Execute("qemu-img", ["bench", .. writes, "--image-opts", "-d", $"{depth}", "-s", $"{bytes}", "-S", $"{7919L * bytes}", "-c", $"{requests}",
                $"driver=raw,file.driver=file,file.filename={Image},file.locking=off,file.aio={kind}"]);
            var words = output.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            return Math.Max(double.Parse(words[^2], CultureInfo.InvariantCulture), 0.001);
        }
    }

    /// <summary>No holes, and everything in the page cache.</summary>
    private void Fill()
    {
        using var file = File.OpenHandle(Image, FileMode.CreateNew, FileAccess.Write, preallocationSize: (long)_mib << 20);
        var piece = new byte[1 << 20];
        new Random(1).NextBytes(piece);
        for (var i = 0; i < _mib; i++) RandomAccess.Write(file, piece, (long)i << 20);
    }
}
