namespace GuestMemory.Core.Kvm;

/// <summary>
/// Where the vCPUs of a VM enter their guest, and wait while the VM is paused. A vCPU whose exit its caller is handling has left, so nobody waits for that. Safe
/// from any thread.
/// </summary>
internal sealed class KvmGate
{
    private readonly object _lock = new();
    private readonly List<KvmVcpu> _inside = [];
    private int _pauses;

    /// <summary>Whether vCPUs are to leave their guest.</summary>
    public bool IsPaused => Volatile.Read(ref _pauses) != 0;

    /// <summary>Enters, where the VM is not paused.</summary>
    public bool TryEnter(KvmVcpu vcpu)
    {
        lock (_lock)
        {
            if (_pauses != 0) return false;
            _inside.Add(vcpu);
            return true;
        }
    }

    public void Leave(KvmVcpu vcpu)
    {
        lock (_lock)
        {
            _inside.Remove(vcpu);
            Monitor.PulseAll(_lock);
        }
    }

    /// <summary>Waits while the VM is paused, unless the vCPU is closed.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public void WaitUntilOpen(KvmVcpu vcpu, CancellationToken cancellation)
    {
        if (!IsPaused) return;
        using var registration = cancellation.UnsafeRegister(static gate => ((KvmGate)gate!).Wake(), this);
        lock (_lock)
        {
            while (_pauses != 0 && !vcpu.IsStopped && !cancellation.IsCancellationRequested) Monitor.Wait(_lock);
        }

        cancellation.ThrowIfCancellationRequested();
    }

    /// <summary>Wakes the threads that wait, to look again.</summary>
    public void Wake()
    {
        lock (_lock) Monitor.PulseAll(_lock);
    }

    /// <summary>Has every vCPU leave its guest, and lets none enter until <see cref="Open"/>. Pauses nest.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled; everything is as before.</exception>
    public void Close(CancellationToken cancellation)
    {
        using var registration = cancellation.UnsafeRegister(static gate => ((KvmGate)gate!).Wake(), this);
        lock (_lock)
        {
            _pauses++;
            // Each is inside: its flag and the signal are for this run.
            foreach (var vcpu in _inside) vcpu.Interrupt();
            while (_inside.Count > 0 && !cancellation.IsCancellationRequested) Monitor.Wait(_lock);
            if (!cancellation.IsCancellationRequested) return;
            _pauses--;
            Monitor.PulseAll(_lock);
        }

        cancellation.ThrowIfCancellationRequested();
    }

    public void Open()
    {
        lock (_lock)
        {
            _pauses--;
            Monitor.PulseAll(_lock);
        }
    }
}
