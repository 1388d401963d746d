using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The process that never touches a page. It listens, receives hand-overs, and keeps of every VM all that another process needs to
/// serve it; a worker is given the same and answers the faults. When a worker ends or hangs, whatever the reason, another takes its
/// place. There is no moment at which a worker alone has a VM, and no number of dead workers after which VMs are given up.
/// </summary>
internal sealed partial class Supervisor : IDisposable
{
    // Milliseconds between the ends of workers and the next start, at most; and after many that were never ready.
    private const int MaxPause = 100;
    private const int LongestPause = 2000;
    private const int ManyFailedStarts = 10;

    // How long after the worker is ready a spare one is started, in milliseconds.
    private const int SparePause = 300;

    private const int LastRounds = 16;
    private const int TellPause = 20;
    private const int LookPause = 2;

    // Figures of more than these do not go over a socket in one piece.
    private const int MaxVmsInLine = 200;
    private static readonly TimeSpan Steady = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan StopTimeout = TimeSpan.FromSeconds(3);

    private readonly UffdHandlerOptions _options;
    private readonly Systemd _systemd;
    private readonly Epoll _epoll = new();
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly VmRecords _vms;
    private readonly List<SafeDescriptor> _unwanted = [];
    private ControlServer? _control;
    private readonly UffdMeter _meter;
    private MetricsEndpoint? _metrics;
    private GuestMemoryException? _failure;
    private Privileges? _privileges;
    private bool _isListening;
    private int _abandoned;
    private int _notifiedCount = -1;
    private int _taken;
    private volatile bool _stopping;

    // Whether no other process is to go on with the VMs.
    private bool _isFinal;

    /// <param name="options">The handler's.</param>
    /// <param name="systemd">The service manager, and what came from it.</param>
    /// <param name="predecessor">The supervisor that this one takes over from; null where it starts afresh.</param>
    /// <param name="isDetached">Whether it was started to leave the terminal.</param>
    public Supervisor(UffdHandlerOptions options, Systemd systemd, Predecessor? predecessor, bool isDetached)
    {
        _options = options;
        _systemd = systemd;
        _predecessor = predecessor;
        _isDetached = isDetached;
        _vms = new VmRecords(systemd) { TakesAll = predecessor is not null };
        _meter = new UffdMeter(options.Strategy, () => [.. _images.Select(image => _vms.Figures(image, _error, options.OnError))]);
        _epoll.Add(_wake, _wake);
    }

    /// <summary>Where the control socket is, once it is open.</summary>
    public string ControlPath => _control!.Path;

    /// <summary>Starts the first worker, listens, and opens the control socket. When it returns, VMs can connect.</summary>
    /// <exception cref="GuestMemoryException">What the worker says about the image, or what is wrong with the socket.</exception>
    /// <param name="controlPath">Where the control socket is made; null where it comes from a predecessor.</param>
    public void Start(string? controlPath)
    {
        var user = Privileges.UserOf(_options);
        OpenImages();
        _privileges = Privileges.Of(_options, user, _images);
        StartWorker();
        // The worker has its own to do meanwhile.
        using (var policy = new UffdPolicy()) UffdRehearsal.Run(policy, source: null, RehearsedHandler.Start);
        // What the figures of the first VM use: an assembly cannot be loaded later where no descriptor is left.
        _ = BitScan.Count([0UL]);
        while (_worker is not { IsReady: true } && _failure is null && !_stopping) Step();
        if (_failure is not null) throw _failure;
        if (_stopping) throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, "The handler was stopped before it listened.");
        // Before any VM, which would be worth nothing without them.
        foreach (var image in _images) image.Files?.Store(_systemd);
        _predecessor?.TakeVms();
        OpenListeners();
        _isListening = true;
        var actions = new ControlServer.Actions(Status, AllFigures, Dirty, Cleared, AddImage, OfVm, StopForGood, Upgrade);
        if (_predecessor is not null)
        {
            TakeOver(_predecessor, actions);
        }
        else
        {
            _metrics = OpenMetrics();
            _control = ControlServer.Open(_epoll, controlPath!, actions);
            OfferMore();
        }

        foreach (var (name, descriptor) in _systemd.Descriptors)
        {
            Log.Lines.DescriptorUnusable(name);
            descriptor.Dispose();
        }

        _systemd.Descriptors.Clear();
        foreach (var image in _images.Where(static image => image.Files is { IsStored: true }))
        {
            foreach (var path in image.Files!.ReplacedPaths()) Fail($"another file lies at {path} than VMs were given; all VMs of this image, new ones too, have the pages of the one that they were given");
        }

        // All that root was needed for is open.
        _privileges.DropForSupervisor();
        CatchUp();
        _systemd.Notify("READY=1");
        Staff();
        foreach (var image in _images) Log.Lines.Listening(image.SocketPath, image.Options.MemoryPath, _control!.Path);
        _control!.AnswerUpgrade(null);
    }

    /// <summary>Runs until it is stopped, or fails as it was told to or because the image has changed; returns the exit code.</summary>
    public int Run()
    {
        while (!_stopping && _failure is null && !IsHandedOver) Step();
        if (IsHandedOver) return Leave();
        if (_successor is not null) GiveUp(Successor.Failed("the handler ends."));
        // Only a stop by the control socket is known to be the last: the end of a service may be one half of its restart.
        var isKept = _systemd.IsThere && !_isFinal;
        _systemd.Notify("STOPPING=1");
        // What ended at the same time as the handler is no VM that was left alone.
        for (var i = 0; i < LastRounds && Step(0) > 0; i++)
        {
        }

        _abandoned = _vms.Count;
        Log.Lines.TellLeftOut(all: true);
        if (_failure is not null) Log.Lines.Failed(_failure.Message);
        else Log.Lines.Stopped(_abandoned, isKept ? ", and wait for the next start if the service manager keeps them" : "");
        foreach (var image in _images)
        {
            if (isKept) image.Handovers?.Listener.KeepPath();
            image.Handovers?.Dispose();
        }

        if (_failure is null && !isKept)
        {
            _vms.Forget();
            foreach (var image in _images) image.Files?.Forget(_systemd);
        }

        EndWorkers();
        if (AppliesOnError) _abandoned = _vms.Count;
        SaveRecords();
        // With all that the worker has counted.
        _control?.End(Status() with { State = _failure is null ? UffdHandlerState.Stopped : UffdHandlerState.Failed, ConnectionCount = 0 });
        return _failure is null ? 0 : 1;
    }

    /// <summary>Ends <see cref="Run"/>; safe from any thread.</summary>
    public void Stop()
    {
        _stopping = true;
        EventFd.Signal(_wake);
    }

    public void Dispose()
    {
        foreach (var image in _images) image.Handovers?.Dispose();
        EndWorkers();
        _control?.Dispose();
        _metrics?.Dispose();
        _meter.Dispose();
        _vms.Dispose();
        foreach (var image in _images) image.Dispose();
        _epoll.Dispose();
        _wake.Dispose();
    }

    private MetricsEndpoint? OpenMetrics()
    {
        if (_options.MetricsPort is { } port) return MetricsEndpoint.OnPort(port, UffdFiguresText.OpenMetricsType, _meter.ToOpenMetrics);
        return _options.MetricsPath is { } path ? MetricsEndpoint.AtPath(path, UffdFiguresText.OpenMetricsType, _meter.ToOpenMetrics) : null;
    }

    private void StopForGood()
    {
        _isFinal = true;
        Stop();
    }

    private void Step() => Step(Timeout());

    private int Step(int timeout)
    {
        NotifyStatus();
        _systemd.Flush();
        var ready = _epoll.Wait(timeout);
        for (var i = 0; i < ready; i++)
        {
            switch (_epoll.Owner(i))
            {
                case IWatched watched:
                    watched.Ready();
                    break;
                case Channel channel:
                    Receive(channel);
                    break;
                case WorkerProcess worker:
                    Ended(worker);
                    break;
                case SafeDescriptor:
                    EventFd.Clear(_wake);
                    break;
            }
        }

        Watch();
        _systemd.KeepAlive();
        if (_startAt != 0 && Stopwatch.GetTimestamp() >= _startAt) StartWorker();
        HandleTimeouts();
        CloseRemovedImages();
        _control?.LookAgain();
        Log.Lines.TellLeftOut();
        ContinueUpgrade();
        return ready;
    }

    private void NotifyStatus()
    {
        if (_notifiedCount == _vms.Count || !_isListening) return;
        _notifiedCount = _vms.Count;
        _systemd.Notify($"STATUS=Serving {_notifiedCount} VMs at {Place}");
    }

    private void HandleTimeouts()
    {
        var hasAccepted = Array.Exists(_images, static image => image.Handovers is { HasAccepted: true });
        foreach (var image in _images)
        {
            if (hasAccepted) image.Handovers?.StopWaiting();
            if (image.Handovers?.HandleTimeouts() is { } overdue) _failure ??= overdue;
        }
    }

    private int Timeout()
    {
        var timeout = -1;
        foreach (var image in _images) timeout = Sooner(timeout, image.Handovers?.Timeout ?? -1);
        if (_systemd.HasPending || _successor is not null) timeout = Sooner(timeout, TellPause);
        if (_control is { IsWaiting: true }) timeout = Sooner(timeout, LookPause);
        timeout = Sooner(Sooner(Sooner(timeout, WatchTimeout), _systemd.WatchdogTimeout), Log.Lines.Timeout);
        return _startAt == 0 ? timeout : Sooner(timeout, (int)Math.Max(0, Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _startAt).TotalMilliseconds)));

        // -1 is never.
        static int Sooner(int one, int other) => one < 0 ? other : other < 0 ? one : Math.Min(one, other);
    }

    /// <summary>What the VMs wrote, and the number of the answer. Null where it cannot be told now: a removal is under way, or its worker is gone.</summary>
    private (SafeDescriptor File, int Number)? Dirty(int id, bool clear)
    {
        if (!_options.TrackDirty) throw UffdHandler.NotTracking(Place);
        VmRecord[] vms = id == 0 ? [.. _vms] : [Find(id)];
        if (clear)
        {
            // Also where it comes to nothing: what was taken meanwhile is in no earlier answer.
            _taken++;
            foreach (var vm in vms) vm.TakenBy = _taken;
        }

        return WriteTracker.TryGet(vms.Select(static vm => vm.Writes), clear) is { } bitmaps ? (WrittenPages.ToFile(bitmaps), _taken) : null;
    }

    private void Cleared(int number)
    {
        // Of a VM whose marks were taken again meanwhile the later answer has them all.
        foreach (var vm in _vms.Where(vm => vm.TakenBy == number)) vm.Writes.Confirm();
    }

    private SafeDescriptor AllFigures() => JsonFile.Create("uffd-figures", _vms.Figures(_images, _failure?.Message ?? _error, _options.OnError), UffdControlJson.Default.UffdFigures);

    private UffdHandlerState StateNow()
    {
        if (_worker is not { IsReady: true }) return UffdHandlerState.Recovering;
        if (_vms.Count == 0) return UffdHandlerState.Listening;
        return _vms.Any(static vm => vm.State.IsLimited) ? UffdHandlerState.Limited : UffdHandlerState.Serving;
    }

    /// <summary>The handler as it is now.</summary>
    public UffdStatus Status()
    {
        var error = _failure?.Message ?? _error;
        var figures = _vms.Figures(_images, error, _options.OnError);
        var only = _images is [var one] ? one : null;
        return new UffdStatus
        {
            ProcessId = Environment.ProcessId,
            WorkerProcessId = _worker?.ProcessId ?? 0,
            WorkerCount = _workers,
            SocketPath = only?.SocketPath,
            MemoryPath = only?.Options.MemoryPath,
            Images = [.. _images.Where(image => image != _adding).Select(image => image.Status(_vms.Count(vm => vm.Image == image)))],
            Strategy = _options.Strategy,
            State = StateNow(),
            ConnectionCount = _vms.Count,
            TotalConnectionCount = _vms.Total,
            AbandonedCount = _abandoned,
            MetricsPort = _metrics?.Port,
            Figures = figures.Vms.Count > MaxVmsInLine ? figures with { Vms = [] } : figures,
            Error = error,
        };
    }
}
