namespace GuestMemory.Core.VhostUser;

/// <summary>A device that a vhost-user back end provides. The connection calls it from the thread that executes requests.</summary>
public interface IVhostUserDevice
{
    /// <summary>The virtio features that the device offers, as bits; those of its virtqueues included.</summary>
    ulong Features { get; }

    /// <summary>How many virtqueues it has: 1 to 256.</summary>
    int QueueCount { get; }

    /// <summary>How many descriptors a virtqueue may have: a power of two, 32768 at most.</summary>
    int MaxQueueSize { get; }

    /// <summary>Reads a part of the configuration space; false where it has no such bytes.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="destination">Where the bytes go.</param>
    bool TryReadConfig(uint offset, Span<byte> destination);

    /// <summary>Begins to serve a virtqueue; it was stopped before, and nothing of it changes until it is stopped again.</summary>
    void StartVring(VhostUserVring vring);

    /// <summary>Ends serving a virtqueue, and sets <see cref="VhostUserVring.NextAvailable"/>. Returns after the last access to its memory.</summary>
    void StopVring(VhostUserVring vring);
}
