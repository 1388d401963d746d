using System.Collections.Concurrent;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The work of a handler that belongs to no single VM: accepts VMMs, receives what they hand over, starts a
/// <see cref="UffdVmService"/> for each VM, and closes what has ended. All of it runs on one thread, the handler's, but for
/// <see cref="Stop"/>, <see cref="Adopt"/> and the figures, which any thread may ask for. It never touches a VM's memory.
/// </summary>
internal sealed partial class UffdServer : IDisposable
{
    private const int LastRounds = 16;

    // How long a service that is to end may take before its thread is interrupted.
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(20);

    // Of every thread: they never change.
    private readonly UffdConnectionAcceptor? _acceptor;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly UffdVmHelpers _helpers;
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly ConcurrentQueue<UffdVmService> _adopted = new();
    private readonly ConcurrentQueue<UffdVmService> _finished = new();
    private readonly ConcurrentQueue<(UffdVm Vm, UffdOnError Action)> _orders = new();
    private readonly string _socketPath;

    // Of the handler's thread.
    private readonly Epoll _epoll = new();
    private bool _isToReadAhead;

    // Written by the handler's thread under the lock; other threads read them under it.
    private readonly Lock _lock = new();
    private readonly List<UffdConnection> _connections = [];
    private readonly List<UffdVmService> _services = [];
    private readonly LatencyHistogram _endedLatency = new();
    private UffdCounters _ended;

    private volatile string? _error;
    private volatile bool _stopping;
    private volatile string? _whyAbandoned;
    private int _accepted;

    /// <summary>
    /// Takes the listener over; without one only VMs that are adopted are served. The source and the policy must outlive the server.
    /// </summary>
    public UffdServer(UnixListener? listener, PageSource source, UffdPolicy policy, UffdHandlerOptions options)
    {
        if (listener is not null) _acceptor = new UffdConnectionAcceptor(listener, options.MaxConnections, options.HandoverTimeout, options.AcceptTimeout, (error, _) => _error = error);
        _socketPath = options.SocketPath;
        _source = source;
        _policy = policy;
        _helpers = new UffdVmHelpers(source, policy);
        _isToReadAhead = !options.NoReadAhead;
    }

    /// <summary>Called on the thread of a VM's service with what went wrong with the VM.</summary>
    public Action<UffdVm, string>? Failed { get; init; }

    /// <summary>Called on the handler's thread when a VM has ended.</summary>
    public Action<UffdVm>? Ended { get; init; }

    public int AcceptedCount => Volatile.Read(ref _accepted);

    public int AbandonedCount { get; private set; }

    public int ConnectionCount
    {
        get
        {
            lock (_lock) return Served.Count();
        }
    }

    /// <summary>Whether a VM has pages that the limit of memory keeps from being filled ahead.</summary>
    public bool IsLimited
    {
        get
        {
            lock (_lock) return Served.Any(static service => service.Vm.State.IsLimited);
        }
    }

    public string? Error
    {
        get
        {
            lock (_lock) return _error ?? _services.Find(static service => service.Vm.Error is not null)?.Vm.Error;
        }
    }

    private IEnumerable<UffdVmService> Served => _services.Where(static service => !service.IsEnding);

    /// <summary>What was counted for all VMs, those that have ended among them.</summary>
    public UffdCounters Counters()
    {
        lock (_lock)
        {
            var all = _ended;
            foreach (var service in _services) all.Add(ref service.Vm.Counters);
            return all;
        }
    }

    public LatencyHistogram Latency()
    {
        var all = new LatencyHistogram();
        lock (_lock)
        {
            all.Add(_endedLatency);
            foreach (var service in _services) all.Add(service.Vm.Latency);
        }

        return all;
    }

    /// <summary>What the VMs wrote; where it is taken it is clean from then on. Null where nobody is served any more.</summary>
    /// <param name="vm">The number of one VM; null for all.</param>
    /// <param name="take">Whether the marks are taken.</param>
    /// <exception cref="GuestMemoryException">VmNotFound.</exception>
    public IReadOnlyList<DirtyBitmap>? DirtyBitmaps(int? vm, bool take)
    {
        while (true)
        {
            lock (_lock)
            {
                if (_wake.IsClosed) return null;
                var writes = (vm is { } id ? [Find(id)] : Served).Select(static service => service.Vm.Writes(service.Connection.Peer.pid)).ToArray();
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
            var vms = Served.Select(Figures).ToArray();
            var counters = Counters();
            return UffdFigures.Of(0, ref counters, Latency(), (vms.Sum(vm => vm.PageCount), vms.Sum(vm => vm.PresentPageCount), vms.Sum(vm => vm.RemovedPageCount)), Error) with
            {
                MissingPageCount = vms.Sum(vm => vm.MissingPageCount),
                Vms = vms,
            };
        }
    }

    /// <summary>Serves until it is told to stop.</summary>
    /// <exception cref="GuestMemoryException">Nobody came in time, or a page could not be had and the policy says that the handler stops.</exception>
    public void Run()
    {
        _epoll.Add(_wake, _wake);
        _acceptor?.Open(_epoll, _acceptor);
        while (!_stopping) Step(Timeout());
        // What ended at the same time as the handler is no VM that was left alone.
        for (var i = 0; i < LastRounds && Step(0) > 0; i++)
        {
        }

        AbandonedCount = ConnectionCount;
    }

    /// <summary>Ends <see cref="Run"/>; safe from any thread, at any time.</summary>
    /// <param name="whyAbandoned">Why no process will serve the VMs any more, so that what was ordered for errors follows; null where one may.</param>
    public void Stop(string? whyAbandoned = null)
    {
        _whyAbandoned = whyAbandoned;
        _stopping = true;
        Wake();
    }

    /// <summary>Serves a VM whose hand-over somebody else has received; safe from any thread. Socket, process and VM are taken over where it returns.</summary>
    /// <exception cref="SyscallException">No descriptor is to be had.</exception>
    public void Adopt(SafeDescriptor socket, SafeDescriptor process, UCred peer, UffdVm vm, IReadOnlyList<GuestRegionUffdMapping> mappings)
    {
        _adopted.Enqueue(new UffdVmService(vm, UffdConnection.Adopt(socket, process, peer, new UffdHandover(mappings, vm.Descriptor)), _helpers, Failed, Finish));
        Wake();
    }

    public void Dispose()
    {
        foreach (var service in _services) service.Stop(_whyAbandoned);
        while (_services.Count > 0)
        {
            if (_services[^1].Join(s_patience)) Remove(_services[^1]);
            else _services[^1].InterruptIfLate(s_patience);
        }

        while (_adopted.TryDequeue(out var service))
        {
            service.Dispose();
            service.Connection.Dispose();
        }

        lock (_lock)
        {
            while (_connections.Count > 0) Close(_connections[^1]);
            _acceptor?.Dispose();
            _wake.Dispose();
            _epoll.Dispose();
        }

        _helpers.Dispose();
    }

    /// <summary>Waits once and does what came: a new connection, a part of a hand-over, a VM's end, a stop.</summary>
    private int Step(int timeout)
    {
        var ready = _epoll.Wait(timeout);
        for (var i = 0; i < ready; i++)
        {
            switch (_epoll.Owner(i))
            {
                case UffdConnection connection:
                    Receive(connection);
                    break;
                case UffdConnectionAcceptor acceptor:
                    Accept(acceptor);
                    break;
                case SafeDescriptor:
                    _ = EventFd.Clear(_wake);
                    break;
            }
        }

        if (!_stopping) StartAdopted();
        FollowOrders();
        while (_finished.TryDequeue(out var service)) End(service);
        DoWhatIsDue();
        return ready;
    }

    /// <summary>Does what is due: hand-overs that took too long, connections that had to wait, services that are late to end.</summary>
    private void DoWhatIsDue()
    {
        for (var i = _connections.Count - 1; i >= 0; i--)
        {
            if (_connections[i].IsOverdue) Receive(_connections[i]);
        }

        foreach (var service in _services) service.InterruptIfLate(s_patience);
        if (_acceptor?.HandleTimeouts() is { } overdue) throw overdue;
    }

    /// <summary>How many milliseconds until something is due; -1 where nothing is.</summary>
    private int Timeout()
    {
        var timeout = _acceptor?.Timeout ?? -1;
        foreach (var connection in _connections)
        {
            if (connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
        }

        if (!_services.Exists(static service => service.IsEnding)) return timeout;
        var patience = (int)s_patience.TotalMilliseconds;
        return timeout < 0 ? patience : Math.Min(timeout, patience);
    }

    /// <summary>A service has ended. For its own thread.</summary>
    private void Finish(UffdVmService service)
    {
        _finished.Enqueue(service);
        Wake();
    }

    private void Wake()
    {
        lock (_lock)
        {
            if (!_wake.IsClosed) EventFd.Signal(_wake);
        }
    }
}
