namespace GuestMemory.Core.Kvm;

/// <content>Pauses, and exports of the memory while the VM runs.</content>
public sealed partial class KvmVm
{
    private readonly KvmGate _gate = new();
    private int _isExported;

    /// <summary>
    /// Has every vCPU leave its guest, and holds those that run or begin to run, also new ones, in <see cref="KvmVcpu.Run"/> until the pause is disposed of. On
    /// return none runs. An exit that a caller is handling goes on: what its device writes to the memory is the caller's to hold. Pauses nest; the VM
    /// goes on after the last. A VM that is removed meanwhile ends its vCPUs as ever.
    /// </summary>
    /// <param name="cancellation">Ends the wait for a vCPU that does not leave: it waits for a page that nobody provides.</param>
    /// <exception cref="GuestMemoryException">VmDisposed.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled; the VM runs.</exception>
    public IDisposable Pause(CancellationToken cancellation = default)
    {
        lock (_lock) ThrowIfDisposed();
        _gate.Close(cancellation);
        return new Held(_gate);
    }

    /// <summary>Where its vCPUs enter their guest.</summary>
    internal KvmGate Gate => _gate;

    /// <summary>Claims the memory for an export while the VM runs, of which there is one at a time.</summary>
    internal bool TryBeginExport() => Interlocked.Exchange(ref _isExported, 1) == 0;

    internal void EndExport() => Volatile.Write(ref _isExported, 0);

    private sealed class Held(KvmGate gate) : IDisposable
    {
        private int _isOver;

        public void Dispose()
        {
            if (Interlocked.Exchange(ref _isOver, 1) == 0) gate.Open();
        }
    }
}
