namespace GuestMemory.Core.Xen;

/// <summary>What a Xen domain does.</summary>
public enum XenDomainState
{
    /// <summary>None of its vCPUs runs or waits.</summary>
    Idle,
    /// <summary>A vCPU runs.</summary>
    Running,
    /// <summary>Its vCPUs wait for something.</summary>
    Blocked,
    /// <summary>It was paused from outside.</summary>
    Paused,
    /// <summary>Its guest has shut down, rebooted or crashed.</summary>
    Shutdown,
    /// <summary>It is being destroyed; what is mapped of its memory stays until it is unmapped.</summary>
    Dying,
}
