namespace GuestMemory.Core.Userfault;

/// <summary>What a handler does at the moment.</summary>
public enum UffdHandlerState
{
    /// <summary>It waits for VMs.</summary>
    Listening,
    /// <summary>It serves at least one VM.</summary>
    Serving,
    /// <summary>It was stopped.</summary>
    Stopped,
    /// <summary>It ended on its own; <see cref="UffdHandler.Error"/> says why.</summary>
    Failed,
    /// <summary>It serves at least one VM, and its fills have brought in as much as they may (<see cref="UffdHandlerOptions.MemoryLimit"/>): what is missing comes by faults alone.</summary>
    Limited,
    /// <summary>The process that answers faults has ended and no other is ready yet: VMs wait at the next page that they miss. <see cref="UffdHandler.Error"/> says why.</summary>
    Recovering,
}
