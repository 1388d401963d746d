using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>Serves one virtqueue of a disk on a thread of its own: takes requests, has all of them worked on at once, and returns each when it has ended.</summary>
internal sealed class BlockQueue : IDisposable
{
    private const int StackSize = 256 << 10;

    // After so long the stop looks whether the thread waits for a descriptor, or for a page, of the front end.
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(100);

    private readonly BlockDevice _device;
    private readonly VhostUserVring _vring;
    private readonly SafeDescriptor _stop;
    private readonly IDiskIo _io;
    private readonly MmapRegion[] _memory;
    private readonly Thread _thread;

    // Of the virtqueue's thread.
    private readonly List<BlockRequest> _requests = [];
    private readonly Stack<BlockRequest> _free = [];
    private SplitQueue? _queue;
    private int _underWay;
    private bool _stopping;

    private BlockQueue(BlockDevice device, VhostUserVring vring, SafeDescriptor stop, IDiskIo io, MmapRegion[] memory)
    {
        (_device, _vring, _stop, _io, _memory) = (device, vring, stop, io, memory);
        _thread = new Thread(Run, StackSize) { IsBackground = true, Name = $"vhost-blk-{vring.Index}" };
    }

    /// <summary>Begins to serve.</summary>
    /// <exception cref="SyscallException">There are no descriptors, or there is no memory, for another virtqueue.</exception>
    /// <exception cref="GuestMemoryException">RegionDisposed.</exception>
    public static BlockQueue Start(BlockDevice device, VhostUserVring vring)
    {
        var memory = Keep(vring.Memory);
        SafeDescriptor? stop = null;
        IDiskIo? io = null;
        try
        {
            stop = EventFd.Create();
            io = device.OpenIo(vring, stop);
            var queue = new BlockQueue(device, vring, stop, io, memory);
            queue._thread.Start();
            return queue;
        }
        catch
        {
            io?.Dispose();
            stop?.Dispose();
            foreach (var region in memory) region.LetUnmap();
            throw;
        }
    }

    /// <summary>Takes no further request, and returns when those that were taken have ended.</summary>
    public void Dispose()
    {
        EventFd.Signal(_stop);
        while (!_thread.Join(s_patience)) _vring.LetThreadsGo();
        _io.Dispose();
        _stop.Dispose();
    }

    /// <summary>Keeps the memory mapped: the kernel writes to its addresses, also where another thread releases a region meanwhile.</summary>
    private static MmapRegion[] Keep(GuestMemoryMmap memory)
    {
        var kept = new List<MmapRegion>();
        try
        {
            foreach (var region in memory.Regions)
            {
                var mapping = region.GetMmapRegion();
                mapping.KeepMapped();
                kept.Add(mapping);
            }
        }
        catch (Exception exception)
        {
            foreach (var mapping in kept) mapping.LetUnmap();
            if (exception is ObjectDisposedException) throw VolatileMemory.RegionDisposed(exception);
            throw;
        }

        return [.. kept];
    }

    private void Run()
    {
        try
        {
            _queue = new SplitQueue(_vring);
            Serve(_queue);
        }
#pragma warning disable CA1031 // A guest that breaks its virtqueue ends its connection, and nothing that a guest does ends the process.
        catch (Exception exception)
        {
            _vring.Fail(exception);
        }
#pragma warning restore CA1031

        if (!TryDrain()) return;
        foreach (var request in _requests) request.Dispose();
        foreach (var region in _memory) region.LetUnmap();
    }

    private void Serve(SplitQueue queue)
    {
        while (!_stopping)
        {
            while (queue.TryPop() is { } chain) Take(chain);
            queue.Signal();
            if (queue.EnableKicks()) continue;
            _io.Wait();
            queue.DisableKicks();
            TakeEvents(queue);
        }
    }

    /// <summary>Waits until the kernel accesses the memory no more. False where it does not say: the memory then stays mapped for ever.</summary>
    private bool TryDrain()
    {
        while (_underWay > 0)
        {
            try
            {
                _io.Wait();
            }
            catch (SyscallException)
            {
                return false;
            }

            Quietly(TakeEvents);
        }

        // A device that serves the virtqueue next is kicked.
        Quietly(static queue =>
        {
            queue.Signal();
            queue.EnableKicks();
        });
        return true;
    }

    /// <summary>A virtqueue that is broken cannot be told of the ends of its requests.</summary>
    private void Quietly(Action<SplitQueue> action)
    {
        try
        {
            if (_queue is { } queue) action(queue);
        }
        catch (GuestMemoryException)
        {
            // The front end knows.
        }
    }

    private void Take(DescriptorChain chain)
    {
        if (chain.WritableLength == 0)
            throw new GuestMemoryException(GuestMemoryError.InvalidQueue, $"Virtqueue {_vring.Index} is broken: a disk request has no byte for its status.");
        if (!_free.TryPop(out var request)) _requests.Add(request = new BlockRequest(_requests.Count));
        if (request.Begin(chain, _vring, _device)) Begin(request);
        else Return(request);
    }

    private void TakeEvents(SplitQueue queue)
    {
        while (_io.TryTake(out var found))
        {
            if (found.Kind == DiskEventKind.Stopped) _stopping = true;
            if (found.Kind != DiskEventKind.Ended) continue;
            _underWay--;
            var request = _requests[found.Place];
            if (request.Continue(found.Result)) Begin(request);
            else Return(request);
        }
    }

    private void Begin(BlockRequest request)
    {
        _io.Begin(request.Place, request.Operation);
        _underWay++;
    }

    /// <summary>Returns a request to the guest: the data is in the memory, then its marks are in the log, then the guest is told.</summary>
    private void Return(BlockRequest request)
    {
        request.MarkFilled(_vring.Memory);
        var chain = request.Chain;
        _ = chain.Write(chain.WritableLength - 1, [request.Status]);
        _queue!.Push(chain, request.Written);
        _free.Push(request);
    }
}
