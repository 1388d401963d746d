using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>What a handler does at the moment.</summary>
public enum UffdHandlerState
{
    /// <summary>It waits for VMs.</summary>
    Listening,
    /// <summary>It serves at least one VM.</summary>
    Serving,
    /// <summary>It was stopped.</summary>
    Stopped,
    /// <summary>It ended on its own; <see cref="UffdHandler.Error"/> says why.</summary>
    Failed,
}

/// <summary>
/// A page-fault handler: listens on a Unix socket, takes over the userfaultfds of VMs that connect, and answers their faults with
/// pages of a memory image, on one thread of its own (Firecracker's UFFD handler, on demand). It serves any number of VMs from the
/// same image; one VM's bad message or death ends only its own connection.
/// </summary>
public sealed class UffdHandler : IDisposable
{
    private const int AcceptPause = 100;
    private const int DeferredPause = 10;
    private const int LastRounds = 16;
    private static int s_lastId;

    private readonly UffdHandlerOptions _options;
    private readonly UffdListener _listener;
    private readonly UffdImage _image;
    private readonly SafeDescriptor _stop;
    private readonly Thread _thread;
    private readonly Lock _lock = new();
    private readonly List<UffdConnection> _connections = [];
    private readonly LatencyHistogram _endedLatency = new();
    private readonly ManualResetEventSlim _ended = new();
    private volatile UffdHandlerState _state = UffdHandlerState.Listening;
    private volatile string? _error;
    private volatile bool _stopping;
    private readonly Epoll _epoll = new();
    private bool _timed;
    private long _acceptPausedUntil;
    private long _endedFaults;
    private long _endedBytes;
    private int _connected;

    private UffdHandler(UffdHandlerOptions options, UffdListener listener, UffdImage image)
    {
        _options = options;
        _listener = listener;
        _image = image;
        _stop = EventFd.Create();
        Id = Interlocked.Increment(ref s_lastId);
        _thread = new Thread(Run) { IsBackground = true, Name = $"uffd-handler-{Id}" };
    }

    /// <summary>A number that tells the handlers of this process apart.</summary>
    public int Id { get; }

    /// <summary>Where it listens.</summary>
    public string SocketPath => _listener.Path;

    /// <summary>The image it serves.</summary>
    public string MemoryPath => _image.Path;

    /// <summary>How it answers faults.</summary>
    public UffdStrategy Strategy => _options.Strategy;

    /// <summary>What it does now.</summary>
    public UffdHandlerState State => _state;

    /// <summary>The process it belongs to.</summary>
    public int ProcessId => Environment.ProcessId;

    /// <summary>The process that answers the faults.</summary>
    public int WorkerProcessId => Environment.ProcessId;

    /// <summary>VMs served now.</summary>
    public int ConnectionCount => Sum(static connection => connection.Vms.Count, 0);

    /// <summary>VMs that ever handed their memory over.</summary>
    public int TotalConnectionCount => Volatile.Read(ref _connected);

    /// <summary>VMs that were still running when the handler was stopped: each waits for ever at the next page that it misses.</summary>
    public int AbandonedCount { get; private set; }

    /// <summary>Faults answered since the start. Who waited for a page may see it before it is counted.</summary>
    public long FaultCount => Sum(static connection => connection.Vms.Sum(static vm => vm.FaultCount), ref _endedFaults);

    /// <summary>Bytes copied out of the image since the start.</summary>
    public long ByteCount => Sum(static connection => connection.Vms.Sum(static vm => vm.ByteCount), ref _endedBytes);

    /// <summary>The time from reading a fault to its answer that half of them stayed below.</summary>
    public TimeSpan LatencyP50 => Latency().Percentile(0.5);

    /// <summary>The same for 99 of 100.</summary>
    public TimeSpan LatencyP99 => Latency().Percentile(0.99);

    /// <summary>The longest.</summary>
    public TimeSpan LatencyMax => Latency().Max;

    /// <summary>What went wrong last, of the handler or one of its connections; null where nothing did.</summary>
    public string? Error
    {
        get
        {
            lock (_lock) return _error ?? _connections.SelectMany(connection => connection.Vms).FirstOrDefault(vm => vm.Error is not null)?.Error;
        }
    }

    /// <summary>Opens the image and the socket and starts serving. When it returns, VMs can connect.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable, SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static UffdHandler Start(UffdHandlerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        var image = UffdImage.Open(options.MemoryPath);
        UffdListener? listener = null;
        try
        {
            listener = UffdListener.Open(options.SocketPath, options.AllowUser, options.Force);
            var handler = new UffdHandler(options, listener, image);
            handler._thread.Start();
            return handler;
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
        _stopping = true;
        lock (_lock)
        {
            if (!_stop.IsClosed) EventFd.Signal(_stop);
        }

        if (Thread.CurrentThread != _thread) _thread.Join();
    }

    /// <summary>Stops the handler.</summary>
    public void Dispose()
    {
        Stop();
        _ended.Dispose();
    }

    private void Run()
    {
        var final = UffdHandlerState.Stopped;
        try
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
#pragma warning disable CA1031 // A background thread must not end the process; what happened stands in State and Error.
        catch (Exception exception)
        {
            _error = exception.Message;
            final = UffdHandlerState.Failed;
        }
#pragma warning restore CA1031
        finally
        {
            lock (_lock)
            {
                while (_connections.Count > 0) Close(_connections[^1]);
                _listener.Dispose();
                _image.Dispose();
                _stop.Dispose();
                _epoll.Dispose();
            }

            _state = final;
            _ended.Set();
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
                case UffdListener:
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

    /// <summary>Closes what has ended, and says what the handler does now.</summary>
    private void Settle()
    {
        lock (_lock)
        {
            for (var i = _connections.Count - 1; i >= 0; i--)
            {
                if (_connections[i].IsEnded || _connections[i].Vms.Exists(static vm => vm.IsGone)) Close(_connections[i]);
            }
        }

        _state = _connections.Exists(static connection => connection.Vms.Count > 0) ? UffdHandlerState.Serving : UffdHandlerState.Listening;
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
            var connection = new UffdConnection(socket, peer, _options.HandoverTimeout);
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
                Interlocked.Increment(ref _connected);
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

    private LatencyHistogram Latency()
    {
        var all = new LatencyHistogram();
        lock (_lock)
        {
            all.Add(_endedLatency);
            foreach (var vm in _connections.SelectMany(connection => connection.Vms)) all.Add(vm.Latency);
        }

        return all;
    }

    private long Sum(Func<UffdConnection, long> figure, ref long ended)
    {
        lock (_lock) return ended + _connections.Sum(figure);
    }

    private int Sum(Func<UffdConnection, int> figure, int start)
    {
        lock (_lock) return start + _connections.Sum(figure);
    }
}
