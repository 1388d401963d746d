namespace GuestMemory.Core;

/// <summary>
/// A page-fault handler: listens on a Unix socket, takes over the userfaultfds of VMs that connect, and answers their faults with
/// pages of a memory image, on one thread of its own (Firecracker's UFFD handler, on demand). It serves any number of VMs from the
/// same image; one VM's bad message or death ends only its own connection.
/// </summary>
public sealed class UffdHandler : IDisposable
{
    private static int s_lastId;

    private readonly UffdServer _server;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _ended = new();
    private volatile UffdHandlerState _end;
    private MetricsEndpoint? _metrics;
    private volatile string? _failure;

    private UffdHandler(UffdHandlerOptions options, UffdServer server, PageSource source, UffdPolicy policy)
    {
        _server = server;
        Id = Interlocked.Increment(ref s_lastId);
        SocketPath = options.SocketPath;
        _source = source;
        _policy = policy;
        MemoryPath = source.Name;
        Strategy = options.Strategy;
        _thread = new Thread(Run) { IsBackground = true, Name = $"uffd-handler-{Id}" };
        _thread.Start();
    }

    /// <summary>A number that tells the handlers of this process apart.</summary>
    public int Id { get; }

    /// <summary>Where it listens.</summary>
    public string SocketPath { get; }

    /// <summary>The image it serves.</summary>
    public string MemoryPath { get; }

    /// <summary>How it answers faults.</summary>
    public UffdStrategy Strategy { get; }

    /// <summary>What it does now.</summary>
    public UffdHandlerState State => _end != UffdHandlerState.Listening ? _end : ConnectionCount > 0 ? UffdHandlerState.Serving : UffdHandlerState.Listening;

    /// <summary>The process it belongs to.</summary>
    public int ProcessId { get; } = Environment.ProcessId;

    /// <summary>The process that answers the faults.</summary>
    public int WorkerProcessId { get; } = Environment.ProcessId;

    /// <summary>VMs served now.</summary>
    public int ConnectionCount => _server.ConnectionCount;

    /// <summary>VMs that ever handed their memory over.</summary>
    public int TotalConnectionCount => _server.AcceptedCount;

    /// <summary>VMs that were still running when the handler was stopped: each waits for ever at the next page that it misses.</summary>
    public int AbandonedCount => _server.AbandonedCount;

    /// <summary>Faults answered since the start. Who waited for a page may see it before it is counted.</summary>
    public long FaultCount => _server.Counters().Faults;

    /// <summary>Bytes copied out of the image since the start.</summary>
    public long ByteCount => _server.Counters().Bytes;

    /// <summary>The time from reading a fault to its answer that half of them stayed below.</summary>
    public TimeSpan LatencyP50 => _server.Latency().Percentile(0.5);

    /// <summary>The same for 99 of 100.</summary>
    public TimeSpan LatencyP99 => _server.Latency().Percentile(0.99);

    /// <summary>The longest.</summary>
    public TimeSpan LatencyMax => _server.Latency().Max;

    /// <summary>The port at which metrics are served; null where none are.</summary>
    public int? MetricsPort => _metrics?.Port;

    /// <summary>Everything that was counted, for all VMs together and for each that is served now.</summary>
    public UffdFigures GetFigures() => _server.Figures() with { Error = Error };

    /// <summary>
    /// What each VM wrote since its memory was handed over, or gave back: a bitmap for each of its regions, in the order of their
    /// mappings. Addresses are offsets in the image; the handler does not know any other.
    /// </summary>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; UffdUnsupported.</exception>
    public IReadOnlyList<DirtyBitmap> GetDirtyBitmaps()
    {
        if (!_policy.TrackDirty) throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"The handler at {SocketPath} does not track what VMs write. Start it with -TrackDirty.");
        return _server.DirtyBitmaps();
    }

    /// <summary>What went wrong last, of the handler or one of its connections; null where nothing did.</summary>
    public string? Error => _failure ?? _server.Error;

    /// <summary>Opens the image and the socket and starts serving. When it returns, VMs can connect.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable, SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static UffdHandler Start(UffdHandlerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        return Start(options, ImageFile.OpenSource(options.MemoryPath, options.LayerPaths));
    }

    /// <summary>
    /// The same with memory of this process in place of an image: each page is handed on as it is when it is needed. The regions
    /// stay mapped as long as the handler runs.
    /// </summary>
    /// <exception cref="GuestMemoryException">As above; RegionInUse: a page-fault handler serves the memory itself.</exception>
    public static UffdHandler Start(UffdHandlerOptions options, GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(options);
        return Start(options, new MemorySource(memory));
    }

    /// <summary>The same with a source, which is taken over.</summary>
    internal static UffdHandler Start(UffdHandlerOptions options, PageSource source)
    {
        UffdListener? listener = null;
        UffdPolicy? policy = null;
        try
        {
            policy = Policy(options, source);
            UffdRehearsal.Run(policy, source);
            listener = UffdListener.Open(options.SocketPath, options.AllowUser, options.Force);
            var handler = new UffdHandler(options, new UffdServer(listener, source, policy, options.HandoverTimeout), source, policy);
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

    private static UffdPolicy Policy(UffdHandlerOptions options, PageSource source)
    {
        if (!ulong.IsPow2(options.WindowSize) || options.WindowSize < HostPage.Size)
            throw Refuse($"A window of {options.WindowSize} bytes is not a power of two of at least one page, {HostPage.Size} bytes.");
        if (options.RecordPath is not null && options.Strategy != UffdStrategy.OnDemand)
            throw Refuse($"Only on demand is every first touch a fault that can be recorded; the strategy is {options.Strategy}.");
        if (options.ReplayPath is null && options.Strategy == UffdStrategy.Replay)
            throw Refuse("A replay needs a record: the file that a handler with -RecordPath has written.");
        if (options.ReplayPath is not null && options.Strategy is UffdStrategy.OnDemand or UffdStrategy.Window)
            throw Refuse($"A record is replayed with the strategies Replay, Background and FaultAll, not with {options.Strategy}.");
        return new UffdPolicy
        {
            Strategy = options.Strategy,
            Window = options.Strategy == UffdStrategy.Window ? options.WindowSize : 0,
            OnError = options.OnError,
            TrackDirty = options.TrackDirty,
            MaxConnections = options.MaxConnections,
            Replay = options.ReplayPath is null ? null : new UffdReplay(TouchRecord.Load(options.ReplayPath, source.Length), source.Length),
            Recorder = options.RecordPath is null ? null : new UffdRecorder(options.RecordPath, source.Length),
        };
    }

    private static GuestMemoryException Refuse(string why) => new(GuestMemoryError.ValueNotSupported, why);

    /// <summary>Waits until the handler has ended; false when the time is over first.</summary>
    public bool Wait(TimeSpan timeout, CancellationToken cancellation = default) => _ended.Wait(timeout, cancellation);

    /// <summary>
    /// Stops serving, takes the socket away and closes every userfaultfd. A VM that still runs keeps its own duplicate, and waits
    /// for ever at the next page that it misses.
    /// </summary>
    public void Stop()
    {
        _server.Stop();
        _thread.Join();
        _metrics?.Dispose();
    }

    /// <summary>Stops the handler.</summary>
    public void Dispose()
    {
        Stop();
        _ended.Dispose();
    }

    private void OfferMetrics(UffdHandlerOptions options)
    {
        try
        {
            if (options.MetricsPort is { } port) _metrics = MetricsEndpoint.OnPort(port, UffdFiguresText.OpenMetricsType, Text);
            else if (options.MetricsPath is { } path) _metrics = MetricsEndpoint.AtPath(path, UffdFiguresText.OpenMetricsType, Text);
        }
        catch
        {
            Stop();
            throw;
        }

        string Text() => UffdFiguresText.ToOpenMetrics(SocketPath, GetFigures());
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
            _end = end;
            _ended.Set();
        }
    }
}
