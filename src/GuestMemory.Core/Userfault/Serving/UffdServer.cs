using System.Collections.Concurrent;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The work of a handler that belongs to no single VM: starts a <see cref="UffdVmService"/> for each VM that is handed over
/// (<see cref="HandoverListener"/>), and closes what has ended. All of it runs on one thread, the handler's, but for
/// <see cref="Stop"/>, <see cref="Adopt"/> and the figures, which any thread may ask for. It never touches a VM's memory.
/// </summary>
internal sealed partial class UffdServer : IHandoverOwner, IDisposable
{
    private const int LastRounds = 16;

    // How long a service that is to end may take before its thread is interrupted.
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(20);

    // Of every thread: they never change.
    private readonly UffdHandlerOptions _options;
    private readonly UffdVmHelpers _helpers = new();
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly ConcurrentQueue<UffdVmService> _adopted = new();
    private readonly ConcurrentQueue<UffdVmService> _finished = new();
    private readonly ConcurrentQueue<(UffdVm Vm, UffdOnError Action)> _orders = new();
    private readonly ConcurrentQueue<Task> _calls = new();

    // Of the handler's thread.
    private readonly Epoll _epoll = new();

    // Written by the handler's thread under the lock; other threads read them under it.
    private readonly Lock _lock = new();
    private readonly List<UffdImageService> _images = [];
    private readonly List<UffdVmService> _services = [];
    private readonly UffdTotals _endedOfRemoved = new();
    private bool _isOver;

    private volatile string? _error;
    private volatile bool _stopping;
    private volatile string? _whyAbandoned;
    private int _accepted;

    /// <param name="options">What is the same for all images.</param>
    public UffdServer(UffdHandlerOptions options) => _options = options;

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
            return Totals(null).Counters;
        }
    }

    public LatencyHistogram Latency()
    {
        lock (_lock) return Totals(null).Latency;
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

    /// <summary>What was counted for all images together.</summary>
    public UffdFigures Figures()
    {
        lock (_lock) return FiguresOf(null);
    }

    /// <summary>What was counted for each image.</summary>
    public IReadOnlyList<UffdFigures> FiguresByImage()
    {
        lock (_lock) return [.. _images.Select(FiguresOf)];
    }

    /// <summary>Serves until it is told to stop.</summary>
    /// <exception cref="GuestMemoryException">Nobody came in time, or a page could not be had and the policy says that the handler stops.</exception>
    public void Run()
    {
        _epoll.Add(_wake, _wake);
        foreach (var image in _images) image.Handovers.Open(_epoll);
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
    public void Adopt(SafeDescriptor socket, SafeDescriptor process, UCred peer, UffdVm vm, IReadOnlyList<GuestRegionUffdMapping> mappings, UffdImageService image)
    {
        var connection = UffdConnection.Adopt(socket, process, peer, new UffdHandover(mappings, vm.Descriptor));
        _adopted.Enqueue(new UffdVmService(vm, connection, image, _helpers, Failed, Finish));
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
            foreach (var image in _images) image.Handovers.Close();
            _isOver = true;
            _wake.Dispose();
            _epoll.Dispose();
        }

        FollowCalls();
        _helpers.Dispose();
        foreach (var image in _images) image.Dispose();
    }

    /// <summary>Waits once and does what came: a new connection, a part of a hand-over, a VM's end, a stop.</summary>
    private int Step(int timeout)
    {
        var ready = _epoll.Wait(timeout);
        for (var i = 0; i < ready; i++)
        {
            switch (_epoll.Owner(i))
            {
                case IWatched watched:
                    watched.Ready();
                    break;
                case SafeDescriptor:
                    _ = EventFd.Clear(_wake);
                    break;
            }
        }

        if (!_stopping) StartAdopted();
        FollowOrders();
        FollowCalls();
        while (_finished.TryDequeue(out var service)) End(service);
        DoWhatIsDue();
        return ready;
    }

    /// <summary>Does what is due: hand-overs that took too long, connections that had to wait, services that are late to end.</summary>
    private void DoWhatIsDue()
    {
        foreach (var service in _services) service.InterruptIfLate(s_patience);
        var hasAccepted = _images.Exists(static image => image.Handovers.HasAccepted);
        foreach (var image in _images)
        {
            if (hasAccepted) image.Handovers.StopWaiting();
            if (image.Handovers.HandleTimeouts() is { } overdue) throw overdue;
        }
    }

    /// <summary>How many milliseconds until something is due; -1 where nothing is.</summary>
    private int Timeout()
    {
        var timeout = -1;
        foreach (var image in _images) timeout = Sooner(timeout, image.Handovers.Timeout);
        return _services.Exists(static service => service.IsEnding) ? Sooner(timeout, (int)s_patience.TotalMilliseconds) : timeout;

        // -1 is never.
        static int Sooner(int one, int other) => one < 0 ? other : other < 0 ? one : Math.Min(one, other);
    }

    /// <summary>What was counted for the VMs of an image, or of all, those that have ended among them. Under the lock.</summary>
    private UffdTotals Totals(UffdImageService? image)
    {
        var all = new UffdTotals();
        if (image is null) all.Add(_endedOfRemoved);
        foreach (var counted in _images)
        {
            if (image is null || counted == image) all.Add(counted.Ended);
        }

        foreach (var service in _services)
        {
            if (image is not null && service.Image != image) continue;
            all.Counters.Add(ref service.Vm.Counters);
            all.Latency.Add(service.Vm.Latency);
        }

        return all;
    }

    private UffdFigures FiguresOf(UffdImageService? image)
    {
        var vms = Served.Where(service => image is null || service.Image == image).Select(Figures).ToArray();
        var totals = Totals(image);
        return UffdFigures.OfAll(totals, vms, Error) with { Image = image?.Name, SocketPath = image?.Options.SocketPath };
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
