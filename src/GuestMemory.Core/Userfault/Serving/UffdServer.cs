using System.Collections.Concurrent;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The work of a handler: waits on every descriptor there is and does what comes. All of it runs on one thread but for
/// <see cref="Stop"/> and the figures, which any thread may ask for.
/// </summary>
internal sealed partial class UffdServer : IDisposable
{
    private const int DeferredPause = 10;
    private const int LastRounds = 16;

    private readonly UffdEntrance? _entrance;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly PageScratch _scratch = new();
    private readonly UffdFiller? _filler;
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly Epoll _epoll = new();
    private readonly Lock _lock = new();
    private readonly List<UffdConnection> _connections = [];
    private readonly ConcurrentQueue<UffdConnection> _adopted = new();
    private readonly LatencyHistogram _endedLatency = new();
    private volatile string? _error;
    private volatile bool _stopping;
    private bool _timed;
    private UffdCounters _ended;
    private int _accepted;

    /// <summary>
    /// Takes the listener over; without one only VMs that are adopted are served. The source and the policy must outlive the server.
    /// </summary>
    public UffdServer(UnixListener? listener, PageSource source, UffdPolicy policy, UffdHandlerOptions options)
    {
        if (listener is not null) _entrance = new UffdEntrance(listener, options.MaxConnections, options.HandoverTimeout, options.AcceptTimeout, error => _error = error);
        _source = source;
        _policy = policy;
        if (policy.FillsAll || policy.Replay is not null) _filler = new UffdFiller(policy.Strategy == UffdStrategy.Background);
    }

    /// <summary>Called on the serving thread with what went wrong with a VM that goes on.</summary>
    public Action<UffdVm, string>? Failed { get; init; }

    /// <summary>Called on the serving thread when a VM has ended.</summary>
    public Action<UffdVm>? Ended { get; init; }

    public int AcceptedCount => Volatile.Read(ref _accepted);

    public int AbandonedCount { get; private set; }

    public int ConnectionCount
    {
        get
        {
            lock (_lock) return _connections.Sum(static connection => connection.Vms.Count);
        }
    }

    public string? Error
    {
        get
        {
            lock (_lock) return _error ?? _connections.SelectMany(static connection => connection.Vms).FirstOrDefault(static vm => vm.Error is not null)?.Error;
        }
    }

    /// <summary>What was counted for all VMs, those that have ended among them.</summary>
    public UffdCounters Counters()
    {
        lock (_lock)
        {
            var all = _ended;
            foreach (var connection in _connections)
            {
                foreach (var vm in connection.Vms) all.Add(ref vm.Counters);
            }

            return all;
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

    /// <summary>What the VMs wrote; where it is taken it is clean from then on. Null where nobody is served any more.</summary>
    public IReadOnlyList<DirtyBitmap>? DirtyBitmaps(bool take)
    {
        while (true)
        {
            lock (_lock)
            {
                if (_wake.IsClosed) return null;
                var writes = _connections.SelectMany(static connection => connection.Vms.Select(vm => vm.Writes(connection.Peer.pid))).ToArray();
                if (WriteTracker.TryGet(writes, take) is { } bitmaps)
                {
                    if (take) Array.ForEach(writes, static vm => vm.Confirm());
                    return bitmaps;
                }
            }

            // Whoever is in the middle of a removal may need the lock.
            Thread.Yield();
        }
    }

    public UffdFigures Figures()
    {
        lock (_lock)
        {
            var vms = _connections.SelectMany(static connection => connection.Vms.Select(vm => vm.State.Figures(connection.Peer.pid, vm.Error))).ToArray();
            var counters = Counters();
            return UffdFigures.Of(0, ref counters, Latency(), (vms.Sum(vm => vm.PageCount), vms.Sum(vm => vm.PresentPageCount), vms.Sum(vm => vm.RemovedPageCount)), Error) with
            {
                MissingPageCount = vms.Sum(vm => vm.MissingPageCount),
                Vms = vms,
            };
        }
    }

    /// <summary>Serves until it is told to stop.</summary>
    public void Run()
    {
        _epoll.Add(_wake, _wake);
        _entrance?.Open(_epoll, _entrance);
        _timed = Timeout() >= 0;
        while (!_stopping) Step(_timed ? Timeout() : -1);
        // What ended at the same time as the handler is no VM that was left alone.
        _epoll.Remove(_wake);
        for (var i = 0; i < LastRounds && Step(0) > 0; i++)
        {
        }

        AbandonedCount = ConnectionCount;
    }

    /// <summary>Ends <see cref="Run"/>; safe from any thread, at any time.</summary>
    public void Stop()
    {
        _stopping = true;
        Wake();
    }

    /// <summary>Serves a VM whose hand-over somebody else has received; safe from any thread.</summary>
    public void Adopt(SafeDescriptor socket, SafeDescriptor process, UCred peer, UffdVm vm, IReadOnlyList<GuestRegionUffdMapping> mappings)
    {
        _adopted.Enqueue(new UffdConnection(socket, process, peer, vm, new UffdHandover(mappings, vm.Descriptor)));
        Wake();
    }

    public void Dispose()
    {
        lock (_lock)
        {
            while (_connections.Count > 0) Close(_connections[^1]);
            while (_adopted.TryDequeue(out var connection)) connection.Dispose();
            _entrance?.Dispose();
            _filler?.Dispose();
            _scratch.Dispose();
            _wake.Dispose();
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
                case UffdEntrance entrance:
                    changed |= Accept(entrance);
                    break;
                case SafeDescriptor when !_stopping:
                    EventFd.Clear(_wake);
                    TakeAdopted();
                    break;
            }
        }

        if (_timed) changed |= LookAtTheClock();
        if (changed) Settle();
        return ready;
    }

    private bool Serve(UffdVm vm)
    {
        vm.Serve(_scratch);
        if (vm.TakeError() is { } error) Failed?.Invoke(vm, error);
        _timed |= vm.HasDeferred;
        if (vm.MustStop) throw new GuestMemoryException(GuestMemoryError.HandlerFailed, vm.Error!);
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

        if (_entrance?.LookAtTheClock() is { } overdue) throw overdue;

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
                var connection = _connections[i];
                if (connection.IsEnded || connection.Vms.Exists(static vm => vm.IsGone)) Close(connection);
            }
        }

        _timed = Timeout() >= 0;
    }

    /// <summary>How many milliseconds until something is due; -1 where nothing is.</summary>
    private int Timeout()
    {
        var timeout = _entrance?.Timeout ?? -1;
        foreach (var connection in _connections)
        {
            if (connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
            if (connection.Vms.Exists(static vm => vm.HasDeferred)) timeout = timeout < 0 ? DeferredPause : Math.Min(timeout, DeferredPause);
        }

        return timeout;
    }

    private void Wake()
    {
        lock (_lock)
        {
            if (!_wake.IsClosed) EventFd.Signal(_wake);
        }
    }
}
