using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>A page-fault handler on threads of this process.</summary>
internal sealed class LocalUffdHandler : UffdHandler
{
    private static int s_lastId;

    private readonly UffdServer _server;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _ended = new();
    private readonly IReadOnlyList<ImageFile> _files;
    private volatile UffdHandlerState _end;
    private readonly UffdMeter _meter;
    private MetricsEndpoint? _metrics;
    private volatile string? _failure;

    private LocalUffdHandler(UffdHandlerOptions options, UffdServer server, PageSource source, UffdPolicy policy, IReadOnlyList<ImageFile> files)
    {
        _files = files;
        _server = server;
        Id = Interlocked.Increment(ref s_lastId);
        SocketPath = options.SocketPath;
        _source = source;
        _policy = policy;
        MemoryPath = source.Name;
        Strategy = options.Strategy;
        _meter = new UffdMeter(SocketPath, Strategy, GetFigures);
        _thread = new Thread(Run) { IsBackground = true, Name = $"uffd-handler-{Id}" };
        _thread.Start();
    }

    public override int Id { get; }

    public override string SocketPath { get; }

    public override string MemoryPath { get; }

    public override UffdStrategy Strategy { get; }

    public override UffdHandlerState State => _end != UffdHandlerState.Listening ? _end
        : ConnectionCount == 0 ? UffdHandlerState.Listening : _server.IsLimited ? UffdHandlerState.Limited : UffdHandlerState.Serving;

    public override int ProcessId { get; } = Environment.ProcessId;

    public override int WorkerProcessId { get; } = Environment.ProcessId;

    public override int WorkerCount => 0;

    public override int ConnectionCount => _server.ConnectionCount;

    public override int TotalConnectionCount => _server.AcceptedCount;

    public override int AbandonedCount => _server.AbandonedCount;

    public override long FaultCount => _server.Counters().Faults;

    public override long ByteCount => _server.Counters().Bytes;

    public override TimeSpan LatencyP50 => _server.Latency().Percentile(0.5);

    public override TimeSpan LatencyP99 => _server.Latency().Percentile(0.99);

    public override TimeSpan LatencyMax => _server.Latency().Max;

    public override int? MetricsPort => _metrics?.Port;

    public override UffdFigures GetFigures() => _server.Figures() with { SocketPath = SocketPath, Error = Error };

    public override string? Error => _failure ?? _server.Error;

    public static new UffdHandler Start(UffdHandlerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        var files = ImageFile.OpenAll(options.MemoryPath, options.LayerPaths);
        // A VM's memory is read beside the serving, by files of its own.
        var copies = new List<ImageFile>(files.Count);
        try
        {
            foreach (var file in files) copies.Add(file.Duplicate());
            return Start(options, ImageFile.OpenSource(files), copies);
        }
        catch
        {
            foreach (var copy in copies) copy.Dispose();
            throw;
        }
    }

    public static new UffdHandler Start(UffdHandlerOptions options, GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(options);
        return Start(options, new MemorySource(memory), []);
    }

    public static new UffdHandler Start(UffdHandlerOptions options, PageSource source) => Start(options, source, []);

    private static LocalUffdHandler Start(UffdHandlerOptions options, PageSource source, IReadOnlyList<ImageFile> files)
    {
        UnixListener? listener = null;
        UffdPolicy? policy = null;
        try
        {
            if (options.User is not null) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A handler in this process runs as its user; another one (User) needs a process of its own.");
            policy = UffdPolicy.From(options, source);
            UffdRehearsal.Run(policy, source);
            listener = UnixListener.Open(options.SocketPath, AllowedPeers.Find(options.AllowUser, options.AllowGroup), options.Force);
            var handler = new LocalUffdHandler(options, new UffdServer(listener, source, policy, options), source, policy, files);
            handler.OfferMetrics(options);
            return handler;
        }
        catch
        {
            listener?.Dispose();
            policy?.Dispose();
            source.Dispose();
            throw;
        }
    }

    internal override IReadOnlyList<DirtyBitmap> GetDirtyBitmapsOf(int? vm, bool clear)
    {
        if (!_policy.TrackDirty) throw NotTracking(SocketPath);
        return _server.DirtyBitmaps(vm, clear) ?? throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler at {SocketPath} has ended, and the record of what its VMs wrote with it.");
    }

    internal override void SetVm(int id, string? name, UffdOnError? onError) => _server.SetVm(id, name, onError);

    internal override void StopVm(int id, UffdOnError action) => _server.StopVm(id, action);

    internal override UffdVmFiles OpenFiles(int id) => _server.OpenFiles(id, OpenImage);

    internal override bool HasVm(int id) => _server.HasVm(id);

    public override bool Wait(TimeSpan timeout, CancellationToken cancellation = default) => _ended.Wait(timeout, cancellation);

    public override void Stop()
    {
        _server.Stop();
        _thread.Join();
        _metrics?.Dispose();
        _meter.Dispose();
    }

    public override void Upgrade(TimeSpan timeout, CancellationToken cancellation = default) =>
        throw new GuestMemoryException(GuestMemoryError.UpgradeFailed, $"The handler at {SocketPath} runs inside this process, and ends with it: no other process can take its VMs over.");

    private protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        Stop();
        _ended.Dispose();
    }

    /// <exception cref="GuestMemoryException">ValueNotSupported: it serves no image.</exception>
    private PageSource OpenImage()
    {
        if (_files.Count == 0) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The handler at {SocketPath} serves out of {MemoryPath}, and no image: what its VMs have not touched is read there.");
        return ImageFile.OpenSource([.. _files.Select(static file => file.Duplicate())]);
    }

    private void OfferMetrics(UffdHandlerOptions options)
    {
        try
        {
            if (options.MetricsPort is { } port) _metrics = MetricsEndpoint.OnPort(port, UffdFiguresText.OpenMetricsType, _meter.ToOpenMetrics);
            else if (options.MetricsPath is { } path) _metrics = MetricsEndpoint.AtPath(path, UffdFiguresText.OpenMetricsType, _meter.ToOpenMetrics);
        }
        catch
        {
            Stop();
            throw;
        }
    }

    private void Run()
    {
        var end = UffdHandlerState.Stopped;
        try
        {
            _server.Run();
        }
#pragma warning disable CA1031 // A background thread must not end the process; what happened stands in State and Error.
        catch (Exception exception)
        {
            _failure = exception.Message;
            end = UffdHandlerState.Failed;
        }
#pragma warning restore CA1031
        finally
        {
            _server.Dispose();
            _policy.Dispose();
            _source.Dispose();
            foreach (var file in _files) file.Dispose();
            _end = end;
            _ended.Set();
        }
    }
}
