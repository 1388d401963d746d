using System.Diagnostics;
using System.Management.Automation;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Commands;

/// <summary>An export in the background: a job on a thread of this process, since the memory is mapped here.</summary>
internal sealed class ExportJob : Job
{
    private static readonly TimeSpan s_interval = TimeSpan.FromSeconds(1);
    private readonly CancellationTokenSource _stop = new();
    private readonly Func<Action<ulong>, CancellationToken, ImageInfo> _write;
    private readonly Action _release;
    private readonly Func<Exception, ErrorRecord?> _toRecord;
    private readonly ProgressBar _progress;
    private readonly Thread _thread;
    private volatile string _status = "";

    /// <param name="command">The command that began it.</param>
    /// <param name="activity">What it does.</param>
    /// <param name="total">The bytes in all.</param>
    /// <param name="write">Exports.</param>
    /// <param name="release">Called when it has ended.</param>
    /// <param name="toRecord">Makes the error record of a failure.</param>
    public ExportJob(string command, string activity, ulong total, Func<Action<ulong>, CancellationToken, ImageInfo> write, Action release, Func<Exception, ErrorRecord?> toRecord)
        : base(command)
    {
        _write = write;
        _release = release;
        _toRecord = toRecord;
        _progress = new ProgressBar(record =>
        {
            _status = record.StatusDescription;
            Progress.Add(record);
        }, activity, total, s_interval);
        _thread = new Thread(Work) { IsBackground = true, Name = "gm-export" };
        PSJobTypeName = "ExportGuestMemory";
    }

    /// <inheritdoc/>
    public override bool HasMoreData => Output.Count > 0 || Error.Count > 0 || Progress.Count > 0;

    /// <inheritdoc/>
    public override string Location => "localhost";

    /// <summary>How far it is: bytes, and bytes a second.</summary>
    public override string StatusMessage => _status;

    public void Start()
    {
        Session.Add(this);
        SetJobState(JobState.Running);
        _thread.Start();
    }

    /// <summary>Ends the export, and returns when nothing is left of it.</summary>
    public override void StopJob()
    {
        // What is told of its end may be a script on its own thread.
        if (!_thread.IsAlive || _thread == Thread.CurrentThread) return;
        _stop.Cancel();
        _thread.Join();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            StopJob();
            _stop.Dispose();
        }

        base.Dispose(disposing);
    }

    private void Work()
    {
        var state = JobState.Failed;
        try
        {
            Export();
            state = JobState.Completed;
        }
        catch (OperationCanceledException) when (_stop.IsCancellationRequested)
        {
            state = JobState.Stopped;
        }
#pragma warning disable CA1031 // Nothing ends the process: what is no error of the library is one of the job.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            Try(() => Error.Add(_toRecord(exception) ?? new ErrorRecord(exception, "ExportFailed", ErrorCategory.NotSpecified, null)));
        }
        finally
        {
            Try(() => Session.Remove(this));
            Try(() => SetJobState(state));
        }
    }

    private void Export()
    {
        try
        {
            Output.Add(PSObject.AsPSObject(_write(_progress.Report, _stop.Token)));
        }
        finally
        {
            try
            {
                _release();
            }
            finally
            {
                _progress.Complete();
            }
        }
    }

    /// <summary>Does what may fail where the job is removed meanwhile, or a script that hears of its end throws; what escapes this thread ends the process.</summary>
    private static void Try(Action action)
    {
        try
        {
            action();
        }
#pragma warning disable CA1031
        catch (Exception exception)
#pragma warning restore CA1031
        {
            System.Diagnostics.Debug.WriteLine(exception);
        }
    }
}
