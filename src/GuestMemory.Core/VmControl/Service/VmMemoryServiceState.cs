namespace GuestMemory.Core.VmControl;

/// <summary>What a service does.</summary>
public enum VmMemoryServiceState
{
    /// <summary>It takes requests.</summary>
    Running,

    /// <summary>It was stopped.</summary>
    Stopped,

    /// <summary>It ended on its own; its Error says why.</summary>
    Failed,
}
