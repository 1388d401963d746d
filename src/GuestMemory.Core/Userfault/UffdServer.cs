using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// The work of a handler: waits on every descriptor there is and does what comes. All of it runs on one thread but for
/// <see cref="Stop"/> and the figures, which any thread may ask for.
/// </summary>
internal sealed class UffdServer : IDisposable
{
    private const int AcceptPause = 100;
    private const int DeferredPause = 10;
    private const int LastRounds = 16;

    private readonly TimeSpan _handoverTimeout;
    private readonly UnixListener _listener;
    private readonly UffdImage _image;
    private readonly SafeDescriptor _stop = EventFd.Create();
    private readonly Epoll _epoll = new();
    private readonly Lock _lock = new();
    private readonly List<UffdConnection> _connections = [];
    private readonly LatencyHistogram _endedLatency = new();
    private volatile string? _error;
    private volatile bool _stopping;
    private bool _timed;
    private long _acceptPausedUntil;
    private long _endedFaults;
    private long _endedBytes;
    private int _accepted;

    /// <summary>Takes the listener and the image over.</summary>
    public UffdServer(UnixListener listener, UffdImage image, TimeSpan handoverTimeout)
    {
        _listener = listener;
        _image = image;
        _handoverTimeout = handoverTimeout;
    }

    public int AcceptedCount => Volatile.Read(ref _accepted);

    public int AbandonedCount { get; private set; }

    public int ConnectionCount
    {
        get
        {
            lock (_lock) return _connections.Sum(static connection => connection.Vms.Count);
        }
    }

    public long FaultCount
    {
        get
        {
            lock (_lock) return _endedFaults + _connections.Sum(static connection => connection.Vms.Sum(static vm => vm.FaultCount));
        }
    }

    public long ByteCount
    {
        get
        {
            lock (_lock) return _endedBytes + _connections.Sum(static connection => connection.Vms.Sum(static vm => vm.ByteCount));
        }
    }

    public string? Error
    {
        get
        {
            lock (_lock) return _error ?? _connections.SelectMany(static connection => connection.Vms).FirstOrDefault(static vm => vm.Error is not null)?.Error;
        }
    }

    public LatencyHistogram Latency()
    {
        var all = new LatencyHistogram();
        lock (_lock)
        {
            all.Add(_endedLatency);
            foreach (var vm in _connections.SelectMany(static connection => connection.Vms)) all.Add(vm.Latency);
        }

        return all;
    }

    /// <summary>Serves until it is told to stop.</summary>
    public void Run()
    {
        _epoll.Add(_stop, _stop);
        _epoll.Add(_listener.Socket, _listener);
        while (!_stopping) Step(_timed ? Timeout() : -1);
        // What ended at the same time as the handler is no VM that was left alone.
        _epoll.Remove(_stop);
        for (var i = 0; i < LastRounds && Step(0) > 0; i++)
        {
        }

        AbandonedCount = ConnectionCount;
    }

    /// <summary>Ends <see cref="Run"/>; safe from any thread, at any time.</summary>
    public void Stop()
    {
        _stopping = true;
        lock (_lock)
        {
            if (!_stop.IsClosed) EventFd.Signal(_stop);
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            while (_connections.Count > 0) Close(_connections[^1]);
            _listener.Dispose();
            _image.Dispose();
            _stop.Dispose();
            _epoll.Dispose();
        }
    }

    /// <summary>Waits once and does what came: faults, a new connection, a part of a hand-over, a stop.</summary>
    private int Step(int timeout)
    {
        var ready = _epoll.Wait(timeout);
        var changed = false;
        // Faults first: somebody waits for them.
        for (var i = 0; i < ready; i++)
        {
            if (_epoll.Owner(i) is UffdVm vm) changed |= Serve(vm);
        }

        for (var i = 0; i < ready; i++)
        {
            switch (_epoll.Owner(i))
            {
                case UffdConnection connection:
                    changed |= Receive(connection);
                    break;
                case UnixListener:
                    changed |= Accept();
                    break;
            }
        }

        if (_timed) changed |= LookAtTheClock();
        if (changed) Settle();
        return ready;
    }

    private bool Serve(UffdVm vm)
    {
        vm.Serve();
        _timed |= vm.HasDeferred;
        return vm.IsGone;
    }

    /// <summary>Does what is due: deferred faults, hand-overs that took too long, connections that had to wait.</summary>
    private bool LookAtTheClock()
    {
        var changed = false;
        foreach (var connection in _connections)
        {
            foreach (var vm in connection.Vms)
            {
                if (vm.HasDeferred) changed |= Serve(vm);
            }

            if (connection.IsOverdue) changed |= Receive(connection);
        }

        if (_acceptPausedUntil != 0 && Stopwatch.GetTimestamp() >= _acceptPausedUntil)
        {
            _acceptPausedUntil = 0;
            _epoll.Add(_listener.Socket, _listener);
        }

        _timed = Timeout() >= 0;
        return changed;
    }

    /// <summary>Closes what has ended.</summary>
    private void Settle()
    {
        lock (_lock)
        {
            for (var i = _connections.Count - 1; i >= 0; i--)
            {
                if (_connections[i].IsEnded || _connections[i].Vms.Exists(static vm => vm.IsGone)) Close(_connections[i]);
            }
        }

        _timed = Timeout() >= 0;
    }

    /// <summary>How many milliseconds until something is due; -1 where nothing is.</summary>
    private int Timeout()
    {
        var timeout = _acceptPausedUntil == 0 ? -1 : AcceptPause;
        foreach (var connection in _connections)
        {
            if (connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
            if (connection.Vms.Exists(static vm => vm.HasDeferred)) timeout = timeout < 0 ? DeferredPause : Math.Min(timeout, DeferredPause);
        }

        return timeout;
    }

    private bool Accept()
    {
        var changed = false;
        while (true)
        {
            var socket = UnixSocket.TryAccept(_listener.Socket, out var error);
            if (socket is null)
            {
                if (error == Errno.EAGAIN) return changed;
                if (error is Errno.ECONNABORTED or Errno.EINTR) continue;
                // The connection stays in the queue; trying again at once would only burn the processor.
                _error = new SyscallException("accept4", error, "Accepting a connection",
                    remedy: error == Errno.EMFILE ? "Raise the limit of open files ('ulimit -n')." : null).Message;
                _epoll.Remove(_listener.Socket);
                _acceptPausedUntil = Stopwatch.GetTimestamp() + Stopwatch.Frequency / 1000 * AcceptPause;
                return true;
            }

            var peer = UnixSocket.PeerCredentials(socket);
            if (!_listener.Allows(peer))
            {
                _error = $"Process {peer.pid} of user {peer.uid} is not allowed to connect; give -AllowUser {peer.uid} if it should be.";
                socket.Dispose();
                continue;
            }

            changed = true;
            var connection = new UffdConnection(socket, peer, _handoverTimeout);
            lock (_lock) _connections.Add(connection);
            _epoll.Add(socket, connection);
        }
    }

    /// <summary>Takes hand-overs from a connection; true when something is to be settled.</summary>
    private bool Receive(UffdConnection connection)
    {
        try
        {
            var changed = false;
            // What was read may hold more than one.
            while (connection.TryReceive(_image, out var vm))
            {
                lock (_lock) connection.Vms.Add(vm);
                _epoll.Add(vm.Descriptor, vm);
                Interlocked.Increment(ref _accepted);
                changed = true;
            }

            return changed || connection.IsEnded;
        }
        catch (GuestMemoryException exception)
        {
            _error = $"Process {connection.Peer.pid} of user {connection.Peer.uid}: {exception.Message}";
            connection.IsEnded = true;
            return true;
        }
    }

    private void Close(UffdConnection connection)
    {
        foreach (var vm in connection.Vms)
        {
            _endedFaults += vm.FaultCount;
            _endedBytes += vm.ByteCount;
            _endedLatency.Add(vm.Latency);
            _error ??= vm.Error;
            _epoll.Remove(vm.Descriptor);
        }

        _epoll.Remove(connection.Socket);

        _connections.Remove(connection);
        connection.Dispose();
    }
}
