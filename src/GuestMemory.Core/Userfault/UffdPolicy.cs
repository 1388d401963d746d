namespace GuestMemory.Core;

/// <summary>How the VMs of a handler are served; the same for all of them.</summary>
internal sealed class UffdPolicy
{
    public UffdStrategy Strategy { get; init; } = UffdStrategy.OnDemand;

    /// <summary>The bytes of the aligned block that a fault brings in; 0 for the page alone.</summary>
    public ulong Window { get; init; }

    public UffdOnError OnError { get; init; }
}
