namespace GuestMemory.Core.Userfault;

/// <summary>
/// Threads that wait for disks, or unpack, so that those which answer faults need not: a bounded number for all VMs of a handler, which
/// take the next fetch of each VM in turn. A fetch brings a part of the image into memory and does nothing to the VM; its service then
/// fills the page. The threads start when they are needed and end when nothing has come for a while.
/// </summary>
internal sealed class UffdFetchers : IDisposable
{
    private const int MaxThreads = 32;

    // Small, but what unpacks needs some.
    private const int StackSize = 512 << 10;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(2);

    // All of it under the lock of the queue.
    private readonly Queue<UffdFetches> _queue = [];
    private int _threads;
    private int _idle;
    private int _waiting;
    private bool _stopping;

    /// <summary>Has a fetch of a VM done.</summary>
    public void Add(UffdFetches vm, UffdFetch fetch)
    {
        lock (_queue)
        {
            fetch.State = UffdFetch.Step.Waiting;
            _waiting++;
            Enqueue(vm);
            if (_waiting <= _idle) Monitor.Pulse(_queue);
            else if (_threads < MaxThreads && TryStartThread()) _threads++;
            else if (_threads == 0)
            {
                // The host has no thread left: the service fetches for itself.
                _waiting--;
                Finish(vm, fetch);
            }
        }
    }

    /// <summary>Drops what waits of a VM, and waits for what is under way.</summary>
    public void Remove(UffdFetches vm)
    {
        while (true)
        {
            lock (_queue)
            {
                _waiting -= vm.Drop();
                if (vm.UnderWay == 0) return;
            }

            Thread.Sleep(1);
        }
    }

    public void Dispose()
    {
        while (true)
        {
            lock (_queue)
            {
                _stopping = true;
                Monitor.PulseAll(_queue);
                if (_threads == 0) return;
            }

            Thread.Sleep(1);
        }
    }

    private bool TryStartThread()
    {
        try
        {
            new Thread(Run, StackSize) { IsBackground = true, Name = "uffd-fetcher" }.Start();
            return true;
        }
        catch (Exception exception) when (exception is OutOfMemoryException or ThreadStartException)
        {
            return false;
        }
    }

    private void Run()
    {
        using var scratch = new PageScratch();
        lock (_queue)
        {
            while (Take(out var vm) is { } fetch)
            {
                Monitor.Exit(_queue);
                _ = TryPrepare(vm.Source, fetch, scratch);
                Monitor.Enter(_queue);
                vm.UnderWay--;
                Finish(vm, fetch);
            }

            _threads--;
        }
    }

    private static bool TryPrepare(PageSource source, UffdFetch fetch, PageScratch scratch)
    {
        try
        {
            source.Prepare(fetch.Offset, fetch.Length, scratch);
            scratch.Trim();
            return true;
        }
#pragma warning disable CA1031 // A background thread must not end the process.
        catch (Exception)
        {
            // The service finds what is wrong when it fills the page.
            return false;
        }
#pragma warning restore CA1031
    }

    /// <summary>The next fetch of the VM whose turn it is; null where the thread is to end.</summary>
    private UffdFetch? Take(out UffdFetches vm)
    {
        while (true)
        {
            while (!_stopping && _queue.TryDequeue(out vm!))
            {
                vm.IsQueued = false;
                if (vm.Next() is not { } fetch) continue;
                fetch.State = UffdFetch.Step.UnderWay;
                _waiting--;
                vm.UnderWay++;
                if (vm.HasWaiting) Enqueue(vm);
                return fetch;
            }

            vm = null!;
            if (_stopping) return null;
            _idle++;
            var isPulsed = Monitor.Wait(_queue, s_patience);
            _idle--;
            if (!isPulsed && _waiting == 0) return null;
        }
    }

    private void Enqueue(UffdFetches vm)
    {
        if (vm.IsQueued) return;
        vm.IsQueued = true;
        _queue.Enqueue(vm);
    }

    private void Finish(UffdFetches vm, UffdFetch fetch)
    {
        fetch.State = UffdFetch.Step.Done;
        // Before the lock is left: from then on the VM's service may end, and its descriptor be closed.
        vm.Wake();
    }
}
