using GuestMemory.Core.Interop;

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
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _ended = new();
    private volatile UffdHandlerState _end;
    private volatile string? _failure;

    private UffdHandler(UffdHandlerOptions options, UffdServer server, string memoryPath)
    {
        _server = server;
        Id = Interlocked.Increment(ref s_lastId);
        SocketPath = options.SocketPath;
        MemoryPath = memoryPath;
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
    public long FaultCount => _server.FaultCount;

    /// <summary>Bytes copied out of the image since the start.</summary>
    public long ByteCount => _server.ByteCount;

    /// <summary>The time from reading a fault to its answer that half of them stayed below.</summary>
    public TimeSpan LatencyP50 => _server.Latency().Percentile(0.5);

    /// <summary>The same for 99 of 100.</summary>
    public TimeSpan LatencyP99 => _server.Latency().Percentile(0.99);

    /// <summary>The longest.</summary>
    public TimeSpan LatencyMax => _server.Latency().Max;

    /// <summary>What went wrong last, of the handler or one of its connections; null where nothing did.</summary>
    public string? Error => _failure ?? _server.Error;

    /// <summary>Opens the image and the socket and starts serving. When it returns, VMs can connect.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable, SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static UffdHandler Start(UffdHandlerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        var image = UffdImage.Open(options.MemoryPath);
        UnixListener? listener = null;
        try
        {
            listener = UnixListener.Open(options.SocketPath, options.AllowUser, options.Force);
            return new UffdHandler(options, new UffdServer(listener, image, options.HandoverTimeout), image.Path);
        }
        catch
        {
            listener?.Dispose();
            image.Dispose();
            throw;
        }
    }

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
    }

    /// <summary>Stops the handler.</summary>
    public void Dispose()
    {
        Stop();
        _ended.Dispose();
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
