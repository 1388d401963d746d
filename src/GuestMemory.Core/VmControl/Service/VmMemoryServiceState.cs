namespace GuestMemory.Core.VmControl;

/// <summary>The state of a service.</summary>
public enum VmMemoryServiceState
{
    /// <summary>It takes requests.</summary>
    Running,

    /// <summary>It was stopped.</summary>
    Stopped,

    /// <summary>It ended by an error, see its Error.</summary>
    Failed,
}
