using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>A page-fault handler on threads of this process.</summary>
internal sealed class LocalUffdHandler : UffdHandler
{
    private static int s_lastId;

    private readonly UffdHandlerOptions _options;
    private readonly UffdServer _server;
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _ended = new();
    private volatile UffdHandlerState _end;
    private readonly UffdMeter _meter;
    private MetricsEndpoint? _metrics;
    private volatile string? _failure;

    private LocalUffdHandler(UffdHandlerOptions options, UffdServer server)
    {
        _options = options;
        _server = server;
        Id = Interlocked.Increment(ref s_lastId);
        _meter = new UffdMeter(Strategy, _server.FiguresByImage);
        _thread = new Thread(Run) { IsBackground = true, Name = $"uffd-handler-{Id}" };
        _thread.Start();
    }

    public override int Id { get; }

    public override string SocketPath => _server.Images is [var only] ? only.Options.SocketPath : null!;

    public override string MemoryPath => _server.Images is [var only] ? only.Options.MemoryPath : null!;

    public override IReadOnlyList<UffdImage> Images => [.. _server.Images.Select(image => new UffdImage(this, image))];

    public override UffdStrategy Strategy => _options.Strategy;

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
        return Start(options, () => options.AllImages().Select(image => Open(options, image)));
    }

    public static new UffdHandler Start(UffdHandlerOptions options, GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(options);
        return Start(options, new MemorySource(memory));
    }

    public static new UffdHandler Start(UffdHandlerOptions options, PageSource source)
    {
        if (options.Images.Count == 0) return Start(options, () => [Open(options, options.OnlyImage with { MemoryPath = source.Name }, source, [])]);
        source.Dispose();
        throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A handler serves memory of this process, or images (Images), and not both.");
    }

    private static LocalUffdHandler Start(UffdHandlerOptions options, Func<IEnumerable<UffdImageService>> open)
    {
        UffdServer? server = new(options);
        try
        {
            UffdImageService? first = null;
            foreach (var image in open())
            {
                server.Add(image, options.AcceptTimeout);
                first ??= image;
            }

            UffdRehearsal.Run(first!.Policy, first.Source);
            var handler = new LocalUffdHandler(options, server);
            server = null;
            handler.OfferMetrics(options);
            return handler;
        }
        finally
        {
            server?.Dispose();
        }
    }

    /// <summary>Opens an image, and the socket at which it is served.</summary>
    private static UffdImageService Open(UffdHandlerOptions options, UffdImageOptions image)
    {
        var files = ImageFile.OpenAll(image.MemoryPath, image.LayerPaths, image.ReplayPath);
        // A VM's memory is read beside the serving, by files of its own.
        var copies = new List<ImageFile>(files.Count);
        try
        {
            foreach (var file in files) copies.Add(file.Duplicate());
            return Open(options, image, ImageFile.OpenSource(files), copies);
        }
        catch
        {
            foreach (var copy in copies) copy.Dispose();
            throw;
        }
    }

    private static UffdImageService Open(UffdHandlerOptions options, UffdImageOptions image, PageSource source, IReadOnlyList<ImageFile> files)
    {
        UffdPolicy? policy = null;
        try
        {
            if (options.User is not null) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A handler in this process runs as its user; another one (User) needs a process of its own.");
            policy = UffdPolicy.From(options, image, source);
            return new UffdImageService(image, source, policy, UnixListener.Open(image.SocketPath, AllowedPeers.Find(options.AllowUser, options.AllowGroup), options.Force), files);
        }
        catch
        {
            policy?.Dispose();
            source.Dispose();
            throw;
        }
    }

    internal override void Add(UffdImageOptions image, CancellationToken cancellation)
    {
        // Before the file of its record is begun, which may be another's.
        UffdHandlerOptions.CheckAdded(image, [.. _server.Images.Select(static other => other.Options)]);
        var added = Open(_options, image);
        try
        {
            _server.AddImage(added);
        }
        catch
        {
            added.Dispose();
            throw;
        }
    }

    internal override void RemoveImage(string name, bool force) => _server.RemoveImage(name, force);

    internal override IReadOnlyList<DirtyBitmap> GetDirtyBitmapsOf(int? vm, bool clear)
    {
        if (!_options.TrackDirty) throw NotTracking(Place);
        return _server.DirtyBitmaps(vm, clear) ?? throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler at {Place} has ended, and the record of what its VMs wrote with it.");
    }

    internal override void SetVm(int id, string? name, UffdOnError? onError) => _server.SetVm(id, name, onError);

    internal override void StopVm(int id, UffdOnError action) => _server.StopVm(id, action);

    internal override UffdVmFiles OpenFiles(int id) => _server.OpenFiles(id);

    internal override UffdLiveExport BeginLive(int id, SafeFileHandle output)
    {
        if (!_options.TrackDirty) throw NotTracking(Place);
        return _server.BeginLive(id, output);
    }

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
        throw new GuestMemoryException(GuestMemoryError.UpgradeFailed, $"The handler at {Place} runs inside this process, and ends with it: no other process can take its VMs over.");

    private protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        Stop();
        _ended.Dispose();
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
            _end = end;
            _ended.Set();
        }
    }
}
