using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Userfault;

/// <content>The VM's own queue of faults that wait: for their turn, a time, or a part of the image.</content>
internal sealed unsafe partial class UffdVm
{
    // More faults than these wait only where some are reported again and again.
    private const int ManyFaults = 1024;

    private static readonly long s_millisecond = Stopwatch.Frequency / 1000;

    private UffdFault[] _waiting = new UffdFault[UffdVmState.Batch];
    private int _waitingCount;
    private bool _isServing;

    // When the next of the deferred faults is to be tried; 0 where none waits for a time.
    private long _due;

    // When it was first looked what waits; 0 before.
    private long _lookedAt;

    /// <summary>Called once, on the thread that serves, when the faults are answered that waited when the service began; null where no one is to hear of it. Set before the VM is served.</summary>
    public Action? CaughtUp { get; set; }

    /// <summary>Milliseconds until a deferred fault is to be tried again, or it is to be looked what waits; -1 where only an event or a fetch makes work.</summary>
    public int Timeout
    {
        get
        {
            if (CaughtUp is not null && _lookedAt == 0) return 0;
            // It is looked again whether faults came.
            if (_isHeld) return 1;
            if (_due == 0) return -1;
            var left = _due - Stopwatch.GetTimestamp();
            return left <= 0 ? 0 : (int)Math.Min((left + s_millisecond - 1) / s_millisecond, int.MaxValue);
        }
    }

    /// <summary>Answers the faults that can be answered now. Called when there are events, a fetch is done, or a deferred fault is due.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Serve(PageScratch scratch)
    {
        ReadEvents(scratch);
        // Serving can read further events, which append to the list; what must be deferred goes back to its front.
        var deferred = 0;
        _due = 0;
        _isServing = true;
        for (var i = 0; i < _waitingCount && !IsOver; i++)
        {
            var fault = _waiting[i];
            if (IsToWait(ref fault))
            {
                Defer(ref fault, deferred++);
                continue;
            }

            var isAnswered = TryAnswer(ref fault, scratch);
            EndOpening();
            if (isAnswered)
            {
                if (!fault.IsHeld) Answered(fault.Since);
            }
            else
            {
                if (!fault.IsDeferred) _counters->Deferred++;
                fault.IsDeferred = true;
                Defer(ref fault, deferred++);
            }
        }

        _isServing = false;
        _waitingCount = deferred;
        _counters->QueueDepth = deferred;
    }

    /// <summary>Says, once, that what waited at the first look is answered. Called after each turn.</summary>
    public void TellCaughtUp()
    {
        if (CaughtUp is not { } tell) return;
        if (_lookedAt == 0) _lookedAt = Stopwatch.GetTimestamp();
        for (var i = 0; i < _waitingCount; i++)
        {
            if (_waiting[i].Since <= _lookedAt) return;
        }

        CaughtUp = null;
        tell();
    }

    /// <summary>Whether a fault's time has not come, or its part of the image is still on its way.</summary>
    private static bool IsToWait(ref UffdFault fault)
    {
        if (fault.Due != 0 && Stopwatch.GetTimestamp() < fault.Due) return true;
        fault.Due = 0;
        if (fault.Fetch is not { } fetch) return false;
        if (fetch.State != UffdFetch.Step.Done) return true;
        fetch.State = UffdFetch.Step.Free;
        fault.Fetch = null;
        fault.IsFetched = true;
        return false;
    }

    private void Defer(ref UffdFault fault, int place)
    {
        if (fault.Due != 0 && (_due == 0 || fault.Due < _due)) _due = fault.Due;
        _waiting[place] = fault;
    }

    private void Answered(long since)
    {
        var now = Stopwatch.GetTimestamp();
        if (_counters->FirstPageAt == 0)
        {
            _counters->FirstPageAt = now;
        }

        _state.Latency.Record(now - since);
        if (now - since > s_millisecond) _source.DoubtReady();
    }

    /// <summary>
    /// A thread of the VM that a signal interrupts while it waits reports the same fault again: of many that wait, one for each page is
    /// enough. What a fault needs beyond that is read anew.
    /// </summary>
    private void MakeRoom()
    {
        if (_waitingCount >= ManyFaults && !_isServing)
        {
            var kept = 0;
            var faults = _waiting.AsSpan(0, _waitingCount);
            faults.Sort(static (one, other) => (one.Address, one.Flags, one.Since).CompareTo((other.Address, other.Flags, other.Since)));
            for (var i = 0; i < faults.Length; i++)
            {
                if (kept > 0 && faults[i].Fetch is null && faults[kept - 1].Address == faults[i].Address && faults[kept - 1].Flags == faults[i].Flags) continue;
                faults[kept++] = faults[i];
            }

            _waitingCount = kept;
        }

        if (_waitingCount > _waiting.Length / 2) Array.Resize(ref _waiting, _waiting.Length * 2);
    }
}
