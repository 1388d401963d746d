using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Executes requests about a VM's memory that come through tubes (crosvm's vm_memory_handler thread): on one thread, for any number of
/// tubes, and of connections to a socket. An invalid request gets an error as its answer. The tube of a peer that has
/// closed, or does not read its answers, is closed; other peers are not affected.
/// </summary>
public sealed class VmMemoryService : IDisposable
{
    private static int s_lastId;

    private readonly VmMemoryContext _context;
    private readonly VmMemoryServer _server;
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _ended = new();
    private volatile VmMemoryServiceState _state;
    private volatile string? _failure;

    private VmMemoryService(VmMemoryServiceOptions options, VmMemoryContext context, VmMemoryServer server)
    {
        _server = server;
        Id = Interlocked.Increment(ref s_lastId);
        SocketPath = options.SocketPath;
        _context = context;
        _thread = new Thread(Run) { IsBackground = true, Name = $"vm-memory-{Id}" };
        _thread.Start();
    }

    /// <summary>A number that is unique in this process.</summary>
    public int Id { get; }

    /// <summary>The path of its socket; null where it serves only tubes that were added.</summary>
    public string? SocketPath { get; }

    /// <summary>The name of the VM that the requests are about; null for one that is not <see cref="KvmVm"/>.</summary>
    public string? VmName => (_context.Vm as KvmVm)?.Name;

    /// <summary>The state.</summary>
    public VmMemoryServiceState State => _state;

    /// <summary>What it serves and where, for debuggers and messages.</summary>
    public override string ToString() => $"memory requests of {VmName ?? "a VM"}{(SocketPath is null ? "" : $" at {SocketPath}")}, {State}";

    /// <summary>Tubes that are served now.</summary>
    public int ConnectionCount => _server.ConnectionCount;

    /// <summary>Requests that were answered since the start, also with an error.</summary>
    public long RequestCount => _server.RequestCount;

    /// <summary>Requests that were answered with an error.</summary>
    public long ErrorCount => _server.ErrorCount;

    /// <summary>The last error of the service or of one of its tubes, other than the answers to requests; null where there was none.</summary>
    public string? Error => _failure ?? _server.Error;

    /// <summary>The context in which requests are executed.</summary>
    public VmMemoryContext GetContext() => _context;

    /// <summary>Starts serving. When it returns, clients can connect.</summary>
    /// <param name="context">The context in which requests are executed; the caller owns the VM, and keeps it as long as the service runs.</param>
    /// <param name="options">The options.</param>
    /// <exception cref="GuestMemoryException">SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static VmMemoryService Start(VmMemoryContext context, VmMemoryServiceOptions options)
    {
        ArgumentNullException.ThrowIfNull(context);
        ArgumentNullException.ThrowIfNull(options);
        var listener = options.SocketPath is { } path ? UnixListener.Open(path, AllowedPeers.Find(options.AllowUser, options.AllowGroup), options.Force, UnixSocket.SOCK_SEQPACKET) : null;
        return new VmMemoryService(options, context, new VmMemoryServer(context, listener, options));
    }

    /// <summary>Serves another tube, which the service owns from then on. Thread-safe.</summary>
    /// <param name="tube">The tube.</param>
    /// <param name="remotePeer">Whether the peer is another process, which may not pass pointers.</param>
    /// <param name="exposeWithViommu">Whether the peer's device is behind the virtio-iommu.</param>
    /// <exception cref="ObjectDisposedException">The service has ended.</exception>
    public void AddTube(Tube tube, bool remotePeer = true, bool exposeWithViommu = false) => _server.Add(new VmMemoryTube(tube, remotePeer, exposeWithViommu));

    /// <summary>Waits until the service has ended; false at the time limit.</summary>
    public bool Wait(TimeSpan timeout, CancellationToken cancellation = default) => _ended.Wait(timeout, cancellation);

    /// <summary>Stops taking requests, removes the socket and closes every tube. Registered memory stays registered.</summary>
    public void Stop()
    {
        _server.Stop();
        _thread.Join();
    }

    /// <summary>Stops the service.</summary>
    public void Dispose()
    {
        Stop();
        _ended.Dispose();
    }

    private void Run()
    {
        var end = VmMemoryServiceState.Stopped;
        try
        {
            _server.Run();
        }
#pragma warning disable CA1031 // A background thread must not end the process; what happened stands in State and Error.
        catch (Exception exception)
        {
            _failure = exception.Message;
            end = VmMemoryServiceState.Failed;
        }
#pragma warning restore CA1031
        finally
        {
            _server.Dispose();
            _state = end;
            _ended.Set();
        }
    }
}
