using System.Diagnostics;
using System.Management.Automation;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A progress bar that is drawn at most ten times a second, and not before half a second.</summary>
internal sealed class ProgressBar(Cmdlet cmdlet, string activity, ulong total)
{
    private readonly Stopwatch _started = Stopwatch.StartNew();
    private TimeSpan _next = TimeSpan.FromMilliseconds(500);
    private bool _shown;

    public void Report(ulong done)
    {
        if (_started.Elapsed < _next) return;
        _next = _started.Elapsed + TimeSpan.FromMilliseconds(100);
        _shown = true;
        cmdlet.WriteProgress(new ProgressRecord(1, activity, $"{Formatting.Size(done)} of {Formatting.Size(total)}")
        {
            PercentComplete = total == 0 ? 100 : (int)Math.Min(100, done * 100.0 / total),
        });
    }

    public void Complete()
    {
        if (_shown) cmdlet.WriteProgress(new ProgressRecord(1, activity, "done") { RecordType = ProgressRecordType.Completed });
    }
}
