using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Threads that read images ahead, each from its first VM on. One is there before any VM, which need not wait for its start; where more images
/// wait, it starts others, since a disk that does not answer must not keep the images of other disks from being read.
/// </summary>
internal sealed class UffdReaders : IDisposable
{
    private const int MaxThreads = 4;
    private const int StackSize = 256 << 10;
    private const int Nice = 10;

    // All of it under the lock of the queue.
    private readonly Queue<PageSource> _queue = [];
    private readonly Dictionary<PageSource, CancellationTokenSource> _reading = [];
    private int _threads;
    private int _idle;
    private bool _stopping;

    /// <summary>Starts the first thread, where there is none yet. Where the host has no thread left nothing is read ahead.</summary>
    public void Prepare()
    {
        lock (_queue)
        {
            if (_threads == 0) StartThread();
        }
    }

    /// <summary>Has an image read.</summary>
    public void Add(PageSource image)
    {
        lock (_queue)
        {
            _queue.Enqueue(image);
            Monitor.PulseAll(_queue);
        }
    }

    /// <summary>The image is not read any more when this returns.</summary>
    public void Remove(PageSource image)
    {
        lock (_queue)
        {
            PageSource[] others = [.. _queue.Where(other => other != image)];
            _queue.Clear();
            foreach (var other in others) _queue.Enqueue(other);
            while (_reading.TryGetValue(image, out var reading))
            {
                reading.Cancel();
                Monitor.Wait(_queue);
            }
        }
    }

    public void Dispose()
    {
        lock (_queue)
        {
            _stopping = true;
            foreach (var reading in _reading.Values) reading.Cancel();
            Monitor.PulseAll(_queue);
            while (_threads > 0) Monitor.Wait(_queue);
        }
    }

    private void StartThread()
    {
        try
        {
            new Thread(Run, StackSize) { IsBackground = true, Name = "uffd-readahead" }.Start();
            _threads++;
        }
        catch (Exception exception) when (exception is OutOfMemoryException or ThreadStartException)
        {
            // Those that are there read one image after the other.
        }
    }

    private void Run()
    {
        Scheduling.LowerThread(Nice);
        lock (_queue)
        {
            while (Take() is { } image)
            {
                if (_queue.Count > 0 && _idle == 0 && _threads < MaxThreads) StartThread();
                using var reading = new CancellationTokenSource();
                _reading.Add(image, reading);
                Monitor.Exit(_queue);
                _ = TryRead(image, reading.Token);
                Monitor.Enter(_queue);
                _reading.Remove(image);
                Monitor.PulseAll(_queue);
            }

            _threads--;
            Monitor.PulseAll(_queue);
        }
    }

    private static bool TryRead(PageSource image, CancellationToken cancellation)
    {
        try
        {
            image.ReadAhead(cancellation);
            return true;
        }
#pragma warning disable CA1031, RCS1075 // A background thread must not end the process.
        catch (Exception)
        {
            // What cannot be read is found, and answered for, when a fault needs it.
            return false;
        }
#pragma warning restore CA1031, RCS1075
    }

    private PageSource? Take()
    {
        PageSource? image;
        while (!_queue.TryDequeue(out image) && !_stopping)
        {
            _idle++;
            Monitor.Wait(_queue);
            _idle--;
        }

        return _stopping ? null : image;
    }
}
