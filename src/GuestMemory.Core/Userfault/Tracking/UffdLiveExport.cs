namespace GuestMemory.Core.Userfault;

/// <summary>The steps of an export of a VM that runs, in the order of the methods. Disposal ends it at any step, and the VM goes on as before. For one thread.</summary>
internal abstract class UffdLiveExport : IDisposable
{
    /// <summary>Write-protects what the VM has, while it runs.</summary>
    public abstract void Protect(CancellationToken cancellation);

    /// <summary>The instant whose memory is exported. A thread of the VM that writes meanwhile waits.</summary>
    public abstract void Take();

    /// <summary>Copies all that the VM has not written since; what it writes meanwhile is copied first.</summary>
    /// <param name="progress">Told the bytes done.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <returns>What was written.</returns>
    public abstract (ulong Bytes, long Pages) Sweep(Action<ulong>? progress, CancellationToken cancellation);

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected abstract void Dispose(bool disposing);
}
