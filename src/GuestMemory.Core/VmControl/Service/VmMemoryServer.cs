using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// The loop of a service: waits for all tubes and answers one request of each in turn. It runs on one thread, except
/// <see cref="Stop"/>, <see cref="Add"/> and the figures.
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
    private readonly List<VmMemoryTube> _waiting = [];
    private readonly CancellationTokenSource _stop = new();
    private bool _disposed;
    private volatile string? _error;
    private long _acceptPausedUntil;
    private long _requests;
    private long _errors;

    /// <summary>Takes ownership of the listener.</summary>
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
            while (!_stop.IsCancellationRequested) Step();
        }
        catch (OperationCanceledException) when (_stop.IsCancellationRequested)
        {
            // A request was waiting for the VM; its tube is closed with the others.
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
            _stop.Cancel();
            EventFd.Signal(_wake);
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            foreach (var tube in _tubes.Concat(_added)) tube.Dispose();
            _tubes.Clear();
            _added.Clear();
            _listener?.Dispose();
            _epoll.Dispose();
            _wake.Dispose();
            _stop.Dispose();
        }
    }

    private void Step()
    {
        var ready = _epoll.Wait(Timeout());
        for (var i = 0; i < ready && !_stop.IsCancellationRequested; i++)
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
                    WatchAdded();
                    break;
            }
        }

        if (_waiting.Count > 0) ServeExpired();
        if (_acceptPausedUntil == 0 || Stopwatch.GetTimestamp() < _acceptPausedUntil) return;
        _acceptPausedUntil = 0;
        _epoll.Add(_listener!.Socket, _listener);
    }

    /// <summary>The milliseconds until the next time limit of a tube; -1: none.</summary>
    private int Timeout()
    {
        var timeout = _acceptPausedUntil == 0 ? double.PositiveInfinity : AcceptPause;
        foreach (var tube in _waiting) timeout = Math.Min(timeout, Math.Ceiling(tube.Exchange!.Files!.TimeLeft.TotalMilliseconds));
        return timeout > int.MaxValue ? -1 : (int)timeout;
    }

    private void ServeExpired()
    {
        foreach (var tube in _waiting.FindAll(static tube => tube.Exchange!.Files!.TimeLeft == TimeSpan.Zero)) Serve(tube);
    }

    private void WatchAdded()
    {
        EventFd.Clear(_wake);
        lock (_lock)
        {
            while (_added.TryDequeue(out var tube)) Watch(tube);
        }
    }

    /// <summary>The caller holds the lock.</summary>
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
            tube.Dispose();
        }
    }

    private void Accept()
    {
        var socket = UnixSocket.TryAccept(_listener!.Socket, out var error, nonBlocking: false);
        if (socket is null)
        {
            if (error is Errno.EAGAIN or Errno.EINTR or Errno.ECONNABORTED) return;
            // The pending connection keeps the listener ready: do not watch it for a moment.
            _error = new SyscallException("accept4", error, "Accepting a connection", remedy: "Raise the limit of open files ('ulimit -n').").Message;
            _epoll.Remove(_listener.Socket);
            _acceptPausedUntil = Stopwatch.GetTimestamp() + Stopwatch.Frequency / 1000 * AcceptPause;
            return;
        }

        var peer = UnixSocket.PeerCredentials(socket);
        if (!_listener.Allows(peer, socket))
        {
            _error = $"Process {peer.pid} of user {peer.uid} may not connect: only root, the service's own user, and the users and groups of AllowUser and AllowGroup may.";
            socket.Dispose();
            return;
        }

        lock (_lock) Watch(new VmMemoryTube(new Tube(socket), remotePeer: true, _options.ExposeWithViommu));
    }

    private void Serve(VmMemoryTube tube)
    {
        try
        {
            if (Answer(tube) is not { } response) return;
            // Before the client gets the answer, since it may then read the count.
            Interlocked.Increment(ref _requests);
            if (response is VmMemoryResponse.Err) Interlocked.Increment(ref _errors);
            // Without waiting: a client that does not read its answers loses its tube.
            tube.Tube.Send(response, VmControlJson.Default.VmMemoryResponse, Tube.DefaultMaxDescriptors, wait: false);
            if (tube.Tube.IsOutOfStep) Close(tube);
        }
        catch (GuestMemoryException exception)
        {
            if (exception.Error != GuestMemoryError.Disconnected) _error = exception.Message;
            Close(tube);
        }
    }

    /// <summary>
    /// Receives a message and answers it; null where the request still waits for its file mappings. Other tubes are served meanwhile, so
    /// that a slow peer delays only itself.
    /// </summary>
    /// <exception cref="GuestMemoryException">The tube was closed, or is out of step.</exception>
    private VmMemoryResponse? Answer(VmMemoryTube tube)
    {
        try
        {
            if (tube.Exchange is { } begun) begun.Files!.ReceiveNext(_stop.Token);
            else tube.Exchange = VmMemoryExchange.Receive(tube.Tube, _options.FileMappingTimeout ?? _context.FileMappingTimeout);
            _waiting.Remove(tube);
            if (tube.Exchange.Files is not { IsComplete: false }) return Finish(tube);
            _waiting.Add(tube);
            return null;
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.BadJson or GuestMemoryError.PacketTooLarge or GuestMemoryError.RecvTooManyFds)
        {
            // Upstream sends no answer, and the client waits for ever.
            return new VmMemoryResponse.Err([exception.Message]);
        }
    }

    private VmMemoryResponse Finish(VmMemoryTube tube)
    {
        using var exchange = tube.Exchange!;
        tube.Exchange = null;
        return exchange.Request.Execute(_context, exchange.Files, tube.RemotePeer, tube.ExposeWithViommu, _stop.Token);
    }

    private void Close(VmMemoryTube tube)
    {
        _epoll.Remove(tube.Tube.Socket);
        lock (_lock) _tubes.Remove(tube);
        tube.Dispose();
    }
}
