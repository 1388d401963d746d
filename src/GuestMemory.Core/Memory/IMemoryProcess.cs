namespace GuestMemory.Core;

/// <summary>The process whose memory a region is.</summary>
internal interface IMemoryProcess
{
    /// <summary>Its number.</summary>
    int ProcessId { get; }

    /// <summary>Has the memory stay as it is until disposal, where that was asked for when it was attached; null where it was not.</summary>
    /// <exception cref="GuestMemoryException">ProcessEnded, ProcessDenied, WaitTimeout: the process cannot be stopped.</exception>
    IDisposable? Hold();
}
