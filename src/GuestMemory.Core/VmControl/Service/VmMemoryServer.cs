using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// The work of a service: waits on every tube there is and answers what comes, one request a tube in turn. All of it runs on one
/// thread but for <see cref="Stop"/>, <see cref="Add"/> and the figures.
/// </summary>
internal sealed class VmMemoryServer : IDisposable
{
    private const int AcceptPause = 100;

    private readonly VmMemoryContext _context;
    private readonly UnixListener? _listener;
    private readonly VmMemoryServiceOptions _options;
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly Epoll _epoll = new();
    private readonly Lock _lock = new();
    private readonly HashSet<VmMemoryTube> _tubes = [];
    private readonly Queue<VmMemoryTube> _added = [];
    private readonly CancellationTokenSource _stopping = new();
    private bool _disposed;
    private volatile string? _error;
    private long _acceptPausedUntil;
    private long _requests;
    private long _errors;

    /// <summary>Takes the listener over.</summary>
    public VmMemoryServer(VmMemoryContext context, UnixListener? listener, VmMemoryServiceOptions options)
    {
        _context = context;
        _listener = listener;
        _options = options;
    }

    public int ConnectionCount
    {
        get
        {
            lock (_lock) return _tubes.Count + _added.Count;
        }
    }

    public long RequestCount => Interlocked.Read(ref _requests);

    public long ErrorCount => Interlocked.Read(ref _errors);

    public string? Error => _error;

    public void Run()
    {
        _epoll.Add(_wake, this);
        if (_listener is not null) _epoll.Add(_listener.Socket, _listener);
        try
        {
            while (!_stopping.IsCancellationRequested) Step();
        }
        catch (OperationCanceledException)
        {
            // Stopped while a request waited for its file mappings.
        }
    }

    /// <summary>Serves a tube; safe from any thread.</summary>
    public void Add(VmMemoryTube tube)
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, typeof(VmMemoryService));
            _added.Enqueue(tube);
            EventFd.Signal(_wake);
        }
    }

    /// <summary>Ends <see cref="Run"/>; safe from any thread, at any time.</summary>
    public void Stop()
    {
        lock (_lock)
        {
            if (_disposed) return;
            _stopping.Cancel();
            EventFd.Signal(_wake);
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            foreach (var tube in _tubes.Concat(_added)) tube.Tube.Dispose();
            _tubes.Clear();
            _added.Clear();
            _listener?.Dispose();
            _epoll.Dispose();
            _wake.Dispose();
            _stopping.Dispose();
        }
    }

    private void Step()
    {
        var ready = _epoll.Wait(_acceptPausedUntil == 0 ? -1 : AcceptPause);
        for (var i = 0; i < ready && !_stopping.IsCancellationRequested; i++)
        {
            switch (_epoll.Owner(i))
            {
                case VmMemoryTube tube:
                    Serve(tube);
                    break;
                case UnixListener:
                    Accept();
                    break;
                case VmMemoryServer:
                    TakeAdded();
                    break;
            }
        }

        if (_acceptPausedUntil == 0 || Stopwatch.GetTimestamp() < _acceptPausedUntil) return;
        _acceptPausedUntil = 0;
        _epoll.Add(_listener!.Socket, _listener);
    }

    private void TakeAdded()
    {
        EventFd.Clear(_wake);
        lock (_lock)
        {
            while (_added.TryDequeue(out var tube)) Watch(tube);
        }
    }

    /// <summary>With the lock held.</summary>
    private void Watch(VmMemoryTube tube)
    {
        _tubes.Add(tube);
        try
        {
            _epoll.Add(tube.Tube.Socket, tube);
        }
        catch (Exception exception) when (exception is GuestMemoryException or ObjectDisposedException)
        {
            _error = exception.Message;
            _tubes.Remove(tube);
            tube.Tube.Dispose();
        }
    }

    private void Accept()
    {
        var socket = UnixSocket.TryAccept(_listener!.Socket, out var error, nonBlocking: false);
        if (socket is null)
        {
            if (error is Errno.EAGAIN or Errno.EINTR or Errno.ECONNABORTED) return;
            // Who waits to be accepted keeps the listener ready: leave it alone for a moment.
            _error = new SyscallException("accept4", error, "Accepting a connection", remedy: "Raise the limit of open files ('ulimit -n').").Message;
            _epoll.Remove(_listener.Socket);
            _acceptPausedUntil = Stopwatch.GetTimestamp() + Stopwatch.Frequency / 1000 * AcceptPause;
            return;
        }

        var peer = UnixSocket.PeerCredentials(socket);
        if (!_listener.Allows(peer))
        {
            _error = $"User {peer.uid} (process {peer.pid}) may not connect; -AllowUser lets one further user in.";
            socket.Dispose();
            return;
        }

        lock (_lock) Watch(new VmMemoryTube(new Tube(socket), RemotePeer: true, _options.ExposeWithViommu));
    }

    private void Serve(VmMemoryTube tube)
    {
        try
        {
            var response = Answer(tube);
            // Counted before it is known to the client, who may ask.
            Interlocked.Increment(ref _requests);
            if (response is VmMemoryResponse.Err) Interlocked.Increment(ref _errors);
            // Nobody waits for a client that takes no answers.
            tube.Tube.Send(response, VmControlJson.Default.VmMemoryResponse, Tube.DefaultMaxDescriptors, wait: false);
            if (tube.Tube.IsOutOfStep) Close(tube);
        }
        catch (GuestMemoryException exception)
        {
            if (exception.Error != GuestMemoryError.Disconnected) _error = exception.Message;
            Close(tube);
        }
    }

    /// <summary>The answer to the next message.</summary>
    /// <exception cref="GuestMemoryException">The tube has ended, or is of no use any more.</exception>
    private VmMemoryResponse Answer(VmMemoryTube tube)
    {
        try
        {
            using var message = tube.Tube.Receive(Tube.DefaultMaxDescriptors, CancellationToken.None);
            var iommu = tube.ExposeWithViommu ? _context.IommuClient : null;
            return message.Read(VmControlJson.Default.VmMemoryRequest)
                .Execute(new VmMemoryExecution(_context, tube.Tube, tube.RemotePeer, iommu, _options.FileMappingTimeout ?? _context.FileMappingTimeout, _stopping.Token));
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.BadJson or GuestMemoryError.PacketTooLarge or GuestMemoryError.RecvTooManyFds)
        {
            // Upstream says nothing, and the client waits for ever.
            return new VmMemoryResponse.Err([exception.Message]);
        }
    }

    private void Close(VmMemoryTube tube)
    {
        _epoll.Remove(tube.Tube.Socket);
        lock (_lock) _tubes.Remove(tube);
        tube.Tube.Dispose();
    }
}
