namespace GuestMemory.Core.VhostUser;

/// <summary>
/// Carries out operations on a disk's file, many at a time, and waits for their ends, for kicks and for the stop. For the thread of one
/// virtqueue. It is disposed of when no operation is under way.
/// </summary>
internal interface IDiskIo : IDisposable
{
    /// <summary>Begins an operation; at the latest the next <see cref="Wait"/> does.</summary>
    /// <param name="place">The number that its end names; no other operation under way has it.</param>
    /// <param name="operation">What is to be done.</param>
    /// <exception cref="Interop.SyscallException">It was not begun.</exception>
    void Begin(int place, in DiskOperation operation);

    /// <summary>Returns as soon as there is an event; sometimes without one.</summary>
    /// <exception cref="Interop.SyscallException">The kernel does not say any more what has ended.</exception>
    void Wait();

    /// <summary>Takes the next event; false where there is none.</summary>
    bool TryTake(out DiskEvent found);
}
