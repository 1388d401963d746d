using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Brings in what nobody has touched yet: one thread for all VMs of a handler, a piece of each in turn. In the background it has a
/// lower priority and gives its processor away again and again.
/// </summary>
internal sealed class UffdFiller : IDisposable
{
    // Less than everybody else gets, and not so little that a busy host starves it: what has not come must come by faults.
    private const int Nice = 5;
    private const int BusyYields = 200;
    private const int MemoryPause = 100;

    // So long it may keep a processor that a fault's thread waits for.
    private static readonly long s_turn = Stopwatch.Frequency / 10_000;

    private readonly Lock _lock = new();
    private readonly AutoResetEvent _work = new(false);
    private readonly List<UffdVm> _vms = [];
    private readonly PageScratch _scratch = new();
    private readonly Thread _thread;
    private readonly bool _background;
    private volatile UffdVm? _current;
    private volatile bool _stopping;
    private int _next;

    /// <param name="background">Whether faults and all else on the host come first.</param>
    public UffdFiller(bool background)
    {
        _background = background;
        _thread = new Thread(Run) { IsBackground = true, Name = "uffd-filler" };
        _thread.Start();
    }

    public void Add(UffdVm vm)
    {
        if (vm.IsFilled) return;
        lock (_lock) _vms.Add(vm);
        _work.Set();
    }

    /// <summary>When it returns, the filler has nothing to do with the VM any more.</summary>
    public void Remove(UffdVm vm)
    {
        lock (_lock) _vms.Remove(vm);
        // A piece takes well under a millisecond.
        var wait = default(SpinWait);
        while (_current == vm) wait.SpinOnce();
    }

    public void Dispose()
    {
        _stopping = true;
        _work.Set();
        _thread.Join();
        _scratch.Dispose();
        _work.Dispose();
    }

    private void Run()
    {
        if (_background) Scheduling.LowerThread(Nice);
        var busy = 0;
        var turn = 0L;
        while (!_stopping)
        {
            if (Take() is not { } vm)
            {
                _work.WaitOne();
                continue;
            }

            FillOutcome outcome;
            try
            {
                outcome = vm.FillAhead(_background, _scratch);
            }
#pragma warning disable CA1031 // A background thread must not end the process.
            catch (Exception)
            {
                // Faults bring in what is missing.
                outcome = vm.GiveUpFilling();
            }
#pragma warning restore CA1031
            finally
            {
                _current = null;
            }

            if (_background) turn = EndTurn(turn);
            busy = outcome == FillOutcome.Busy ? busy + 1 : 0;
            if (busy > 0) GiveWay(busy);
            else if (outcome == FillOutcome.NoMemory) _work.WaitOne(MemoryPause);
            else if (outcome is FillOutcome.Complete or FillOutcome.Gone) Drop(vm);
        }
    }

    /// <summary>A fault's thread that waits for this processor gets it now, and not only when a slice of time is over.</summary>
    private static long EndTurn(long began)
    {
        if (Stopwatch.GetTimestamp() - began < s_turn) return began;
        Thread.Yield();
        return Stopwatch.GetTimestamp();
    }

    private UffdVm? Take()
    {
        lock (_lock)
        {
            if (_vms.Count == 0) return null;
            if (_next >= _vms.Count) _next = 0;
            return _current = _vms[_next++];
        }
    }

    private void Drop(UffdVm vm)
    {
        lock (_lock) _vms.Remove(vm);
    }

    private static void GiveWay(int busy)
    {
        if (busy < BusyYields) Thread.Yield();
        else Thread.Sleep(1);
    }
}
