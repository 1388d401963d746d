using System.Diagnostics;
using System.Globalization;
using GuestMemory.Core.Processes;

namespace GuestMemory.Bench;

/// <summary>
/// What a process wrote, read from outside: the same scans as in pagemap-scan.c, whose process in "target" is what is tracked.
/// </summary>
internal sealed class TrackingRows : RowSet
{
    private const ulong Size = 1UL << 30;

    private readonly Process _target;
    private readonly ProcessDirtyTracker _exact;
    private readonly ProcessDirtyTracker _compared;

    public TrackingRows()
    {
        var folder = Directory.CreateTempSubdirectory("gm-bench-").FullName;
        _target = Process.Start(new ProcessStartInfo(BenchTools.Compile(folder, Program), ["target", $"{Size >> 20}"]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
        var address = ulong.Parse(_target.StandardOutput.ReadLine()!, CultureInfo.InvariantCulture);
        Directory.Delete(folder, recursive: true);
        _exact = ProcessDirtyTracker.Start(_target.Id, address, Size);
        _compared = ProcessDirtyTracker.Start(_target.Id, address, Size / 16, ProcessTrackingSource.Compare);
    }

    public override string Name => "tracking";

    public override string Setup => "1 GiB of anonymous memory in pages of 4 KiB, all there, in another process, on one CPU";

    public override string Program => "pagemap-scan";

    public override string[] Filters => [""];

    public override string Mebibytes => $"{Size >> 20}";

    public override Row[] Rows { get; } =
    [
        new("read what was written, nothing", "\"scan_clean\"", "1.20", 1),
        new("read and clear, nothing written", "\"take_clean\"", "1.20", 1),
        new("read what was written, each eighth page", "\"scan_eighth\"", "1.20", 1),
        new("read and clear, each eighth page written", "\"take_eighth\"", "1.20", 1),
        new("compare 64 MiB; C reads them, and no more", "\"read_sixteenth\"", "", 1),
    ];

    protected override int WarmUps => 12;

    protected override double[] Measure() =>
    [
        Time(Take, () => _exact.GetDirtyBitmap(), once: true),
        Time(null, Take),
        Time(Write, () => _exact.GetDirtyBitmap()),
        Time(Write, Take),
        Time(null, () => _compared.GetDirtyBitmap(clear: true)),
    ];

    private void Take() => _exact.GetDirtyBitmap(clear: true);

    private void Write()
    {
        _target.StandardInput.WriteLine("8");
        _target.StandardInput.Flush();
        _ = _target.StandardOutput.ReadLine();
    }
}
