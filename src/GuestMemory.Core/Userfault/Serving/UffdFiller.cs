using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Brings in pages that no VM has touched yet, for all VMs of a handler: a few threads, a piece of each VM in turn, and never two of one VM at
/// once. A VM that cannot be filled now (no memory, its events are being read) is passed over until later, and one that waits for a disk
/// keeps one thread. In the background the threads have a lower priority and give their processor away again and again.
/// </summary>
internal sealed class UffdFiller : IDisposable
{
    // Less than everybody else gets, and not so little that a busy host starves it: what has not come must come by faults.
    private const int Nice = 5;
    private const int BusyYields = 200;
    private const int MinThreads = 2;
    private const int MaxThreads = 4;

    private static readonly long s_busyPause = Stopwatch.Frequency / 1000;
    private static readonly long s_memoryPause = Stopwatch.Frequency / 10;

    // So long it may keep a processor that a fault's thread waits for.
    private static readonly long s_turn = Stopwatch.Frequency / 10_000;

    private readonly AutoResetEvent _work = new(false);
    private readonly Thread[] _threads;
    private readonly bool _background;
    private volatile bool _stopping;

    // All of it under the lock.
    private readonly Lock _lock = new();
    private readonly Queue<UffdFill> _queue = [];
    private readonly UffdFillBudget _budget;
    private int _idle;

    public UffdFiller(UffdPolicy policy)
    {
        // In the background faults and all else on the host come first.
        _background = policy.Strategy == UffdStrategy.Background;
        _budget = new UffdFillBudget(policy.FillRate, policy.MemoryLimit);
        _threads = new Thread[Math.Clamp(Environment.ProcessorCount, MinThreads, MaxThreads)];
        for (var i = 0; i < _threads.Length; i++)
        {
            _threads[i] = new Thread(Run) { IsBackground = true, Name = "uffd-filler" };
            _threads[i].Start();
        }
    }

    /// <summary>Fills a VM from now on, where something is to be filled.</summary>
    public UffdFill Add(UffdVm vm)
    {
        var fill = new UffdFill(vm);
        lock (_lock)
        {
            _budget.Add(fill);
            if (vm.IsFilled) return fill;
            _queue.Enqueue(fill);
        }

        _work.Set();
        return fill;
    }

    /// <summary>When it returns, the filler has nothing to do with the VM any more. Waits for a piece that is under way.</summary>
    public void Remove(UffdFill fill)
    {
        lock (_lock)
        {
            fill.IsRemoved = true;
            _budget.Remove(fill);
        }

        var wait = default(SpinWait);
        while (fill.IsUnderWay) wait.SpinOnce();
    }

    public void Dispose()
    {
        _stopping = true;
        foreach (var thread in _threads)
        {
            while (!thread.Join(1)) _work.Set();
        }

        _work.Dispose();
    }

    private void Run()
    {
        if (_background) Scheduling.LowerThread(Nice);
        using var scratch = new PageScratch();
        var turn = 0L;
        while (!_stopping)
        {
            if (Next(out var pause) is not { } fill)
            {
                _ = _work.WaitOne(pause);
                lock (_lock) _idle--;
                continue;
            }

            var outcome = Fill(fill, scratch);
            scratch.Trim();
            if (_background) turn = EndTurn(turn);
            Requeue(fill, outcome);
        }
    }

    private FillOutcome Fill(UffdFill fill, PageScratch scratch)
    {
        try
        {
            return fill.Vm.FillAhead(_background, fill.Most, fill.Room, scratch);
        }
#pragma warning disable CA1031 // A background thread must not end the process.
        catch (Exception)
        {
            // Faults bring in what is missing.
            return fill.Vm.GiveUpFilling();
        }
#pragma warning restore CA1031
    }

    /// <summary>A fault's thread that waits for this processor gets it now, and not only when a slice of time is over.</summary>
    private static long EndTurn(long began)
    {
        if (Stopwatch.GetTimestamp() - began < s_turn) return began;
        Thread.Yield();
        return Stopwatch.GetTimestamp();
    }

    /// <summary>The VM whose turn it is; null where none can be filled now, with the milliseconds until one can (-1: for ever).</summary>
    private UffdFill? Next(out int pause)
    {
        lock (_lock)
        {
            var now = Stopwatch.GetTimestamp();
            var wait = _budget.Pause(now);
            var due = wait == 0 || _queue.Count == 0 ? long.MaxValue : now + wait;
            pause = -1;
            for (var i = wait == 0 ? _queue.Count : 0; i > 0; i--)
            {
                var fill = _queue.Dequeue();
                if (fill.IsRemoved) continue;
                if (fill.Due <= now)
                {
                    fill.IsUnderWay = true;
                    _budget.Reserve(fill);
                    if (_idle > 0 && _queue.Count > 0) _work.Set();
                    return fill;
                }

                due = Math.Min(due, fill.Due);
                _queue.Enqueue(fill);
            }

            if (due != long.MaxValue) pause = (int)((due - now) / (Stopwatch.Frequency / 1000)) + 1;
            _idle++;
            return null;
        }
    }

    private void Requeue(UffdFill fill, FillOutcome outcome)
    {
        fill.Busy = outcome == FillOutcome.Busy ? fill.Busy + 1 : 0;
        if (fill.Busy is > 0 and < BusyYields) Thread.Yield();
        var pause = outcome is FillOutcome.NoMemory or FillOutcome.NoRoom ? s_memoryPause : fill.Busy >= BusyYields ? s_busyPause : 0;
        lock (_lock)
        {
            _budget.Count(fill);
            fill.Due = pause == 0 ? 0 : Stopwatch.GetTimestamp() + pause;
            if (outcome is not (FillOutcome.Complete or FillOutcome.Gone) && !fill.IsRemoved) _queue.Enqueue(fill);
            fill.IsUnderWay = false;
        }
    }
}
