namespace GuestMemory.Core.Tests;

/// <summary>A disk that is slow to answer: it keeps operations back until they are released.</summary>
internal sealed class HeldDiskIo(IDiskIo io, SafeDescriptor wake, Predicate<DiskOperation> holds) : IDiskIo
{
    private readonly Lock _lock = new();
    private readonly List<(int Place, DiskOperation Operation)> _held = [];
    private readonly List<DiskOperation> _begun = [];
    private bool _released;
    private volatile bool _sawStop;
    private volatile bool _isWaiting;

    /// <summary>Whether the virtqueue's thread knows that it is to stop.</summary>
    public bool SawStop => _sawStop;

    /// <summary>Whether the virtqueue's thread has begun to wait since it began an operation; then it notices nothing but events.</summary>
    public bool IsWaiting => _isWaiting;

    public int HeldCount
    {
        get
        {
            lock (_lock) return _held.Count;
        }
    }

    /// <summary>What was asked for, in that order.</summary>
    public DiskOperation[] Begun
    {
        get
        {
            lock (_lock) return [.. _begun];
        }
    }

    public void Begin(int place, in DiskOperation operation)
    {
        lock (_lock)
        {
            _isWaiting = false;
            _begun.Add(operation);
            if (!_released && holds(operation))
            {
                _held.Add((place, operation));
                return;
            }
        }

        io.Begin(place, operation);
    }

    public void Wait()
    {
        lock (_lock)
        {
            if (_released)
            {
                foreach (var (place, operation) in _held) io.Begin(place, operation);
                _held.Clear();
            }
        }

        _isWaiting = true;
        io.Wait();
    }

    public bool TryTake(out DiskEvent found)
    {
        if (!io.TryTake(out found)) return false;
        if (found.Kind == DiskEventKind.Stopped) _sawStop = true;
        return true;
    }

    /// <summary>Begins what was kept back, and keeps back nothing any more.</summary>
    public void Release()
    {
        lock (_lock)
        {
            if (_released) return;
            _released = true;
        }

        EventFd.Signal(wake);
    }

    public void Dispose() => io.Dispose();
}
