using System.Diagnostics;
using System.Management.Automation;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A progress bar, with bytes, rate and the time that is left, which is drawn at most so often, and not before half a second.</summary>
/// <param name="write">Shows it.</param>
/// <param name="activity">What goes on.</param>
/// <param name="total">The bytes in all.</param>
/// <param name="interval">The least time between two.</param>
internal sealed class ProgressBar(Action<ProgressRecord> write, string activity, ulong total, TimeSpan interval)
{
    private static readonly TimeSpan s_first = TimeSpan.FromMilliseconds(500);
    private readonly Stopwatch _started = Stopwatch.StartNew();
    private TimeSpan _next = s_first;
    private bool _shown;

    /// <summary>One of a cmdlet, at most ten times a second.</summary>
    public ProgressBar(Cmdlet cmdlet, string activity, ulong total)
        : this(cmdlet.WriteProgress, activity, total, TimeSpan.FromMilliseconds(100))
    {
    }

    public void Report(ulong done)
    {
        var time = _started.Elapsed;
        if (time < _next) return;
        _next = time + interval;
        _shown = true;
        var rate = done / time.TotalSeconds;
        write(new ProgressRecord(1, activity, $"{Formatting.Size(done)} of {Formatting.Size(total)}, {Formatting.Rate(rate)}")
        {
            PercentComplete = total == 0 ? 100 : (int)Math.Min(100, done * 100.0 / total),
            SecondsRemaining = rate > 0 && done < total ? (int)Math.Min((total - done) / rate, int.MaxValue) : -1,
        });
    }

    public void Complete()
    {
        if (_shown) write(new ProgressRecord(1, activity, "done") { RecordType = ProgressRecordType.Completed });
    }
}
