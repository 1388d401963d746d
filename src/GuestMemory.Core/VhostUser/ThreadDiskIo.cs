using System.Collections.Concurrent;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// Operations on a disk's file by threads that wait for them: where there is no io_uring, and where pages of the guest are missing. Such a page is
/// waited for before the file is read or written, since the kernel has a lock of the file while it copies.
/// </summary>
internal sealed unsafe class ThreadDiskIo : IDiskIo
{
    /// <summary>The most operations that are under way at a time; others wait for the end of one.</summary>
    public const int MaxThreads = 16;

    private const int StackSize = 256 << 10;

    private readonly SafeFileHandle _file;
    private readonly int _number;
    private readonly SafeDescriptor _kick;
    private readonly SafeDescriptor _stop;
    private readonly bool _mayWait;
    private readonly SafeDescriptor _ended = EventFd.Create();
    private readonly BlockingCollection<(int Place, DiskOperation Operation)> _begun = [];
    private readonly ConcurrentQueue<DiskEvent> _events = new();
    private readonly List<Thread> _threads = [];

    // Of the virtqueue's thread.
    private int _underWay;
    private bool _isStopped;

    /// <param name="file">The file; it is kept open.</param>
    /// <param name="kick">The eventfd of the guest, which stays open.</param>
    /// <param name="stop">The eventfd that stops the virtqueue, which stays open.</param>
    /// <param name="mayWait">Whether pages of the memory may be missing.</param>
    public ThreadDiskIo(SafeFileHandle file, SafeDescriptor kick, SafeDescriptor stop, bool mayWait = false)
    {
        (_file, _kick, _stop, _mayWait) = (file, kick, stop, mayWait);
        var held = false;
        file.DangerousAddRef(ref held);
        _number = (int)file.DangerousGetHandle();
    }

    public void Begin(int place, in DiskOperation operation)
    {
        if (_threads.Count < Math.Min(++_underWay, MaxThreads))
        {
            var thread = new Thread(Work, StackSize) { IsBackground = true, Name = "vhost-disk" };
            _threads.Add(thread);
            thread.Start();
        }

        _begun.Add((place, operation));
    }

    public void Wait()
    {
        if (!_events.IsEmpty) return;
        Span<PollFd> entries =
        [
            new PollFd { fd = _ended.Number, events = Poll.POLLIN },
            new PollFd { fd = _kick.Number, events = Poll.POLLIN },
            // It stays signalled: once is enough. poll(2) ignores a negative number.
            new PollFd { fd = _isStopped ? -1 : _stop.Number, events = Poll.POLLIN },
        ];
        _ = Poll.Wait(entries, -1);
        if (entries[0].revents != 0) EventFd.Clear(_ended);
        if (entries[1].revents != 0)
        {
            EventFd.ClearShared(_kick);
            _events.Enqueue(new DiskEvent(DiskEventKind.Kicked));
        }

        if (entries[2].revents == 0) return;
        _isStopped = true;
        _events.Enqueue(new DiskEvent(DiskEventKind.Stopped));
    }

    public bool TryTake(out DiskEvent found)
    {
        if (!_events.TryDequeue(out found)) return false;
        if (found.Kind == DiskEventKind.Ended) _underWay--;
        return true;
    }

    public void Dispose()
    {
        _begun.CompleteAdding();
        foreach (var thread in _threads) thread.Join();
        _begun.Dispose();
        _ended.Dispose();
        _file.DangerousRelease();
    }

    /// <summary>Carries out an operation; its result.</summary>
    public static int Execute(int file, in DiskOperation operation)
    {
        var pieces = (IoVec*)operation.Pieces;
        var offset = (long)operation.Offset;
        return (int)(operation.Action switch
        {
            DiskAction.Read => PositionedIo.TryRead(file, pieces, operation.Count, offset),
            DiskAction.Write => PositionedIo.TryWrite(file, pieces, operation.Count, offset, operation.Flags),
            DiskAction.Sync => PositionedIo.TrySync(file),
            _ => PositionedIo.TryAllocate(file, operation.Flags, offset, (long)operation.Length),
        });
    }

    private void Work()
    {
        foreach (var (place, operation) in _begun.GetConsumingEnumerable())
        {
            var error = _mayWait ? AwaitPages(operation) : 0;
            _events.Enqueue(new DiskEvent(DiskEventKind.Ended, place, error == 0 ? Execute(_number, operation) : -error));
            EventFd.Signal(_ended);
        }
    }

    /// <summary>Waits for the pages of an operation; the error number, or 0.</summary>
    private static int AwaitPages(in DiskOperation operation)
    {
        for (var i = 0; i < operation.Count; i++)
        {
            ref var piece = ref ((IoVec*)operation.Pieces)[i];
            var error = GuardedCopy.TryPopulate((byte*)piece.iov_base, (nuint)piece.iov_len, write: operation.Action == DiskAction.Read);
            if (error != 0) return error;
        }

        return 0;
    }
}
