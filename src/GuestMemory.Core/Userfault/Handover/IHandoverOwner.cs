namespace GuestMemory.Core.Userfault;

/// <summary>Who owns the VMs that come in at a <see cref="HandoverListener"/>, which calls it on its own thread.</summary>
internal interface IHandoverOwner
{
    /// <summary>How many VMMs are connected, at all sockets of the handler.</summary>
    int ConnectionCount { get; }

    /// <summary>How many VMs are served.</summary>
    int VmCount { get; }

    /// <summary>How many of them came over a connection.</summary>
    int CountVms(UffdConnection connection);

    /// <summary>Serves a VM. The descriptors of the hand-over are taken over, and closed where that fails.</summary>
    /// <param name="listener">Where it came in.</param>
    /// <param name="connection">The VMM's connection.</param>
    /// <param name="handover">The VM's memory.</param>
    void Take(HandoverListener listener, UffdConnection connection, UffdHandover handover);

    /// <summary>A connection has ended, and with it its VMs, which the owner ends now or later (<see cref="HandoverListener.VmEnded"/>).</summary>
    void Ended(UffdConnection connection);

    /// <summary>Something went wrong.</summary>
    /// <param name="error">What.</param>
    /// <param name="user">The user whose process has caused it; null where none has.</param>
    void Failed(string error, uint? user);
}
