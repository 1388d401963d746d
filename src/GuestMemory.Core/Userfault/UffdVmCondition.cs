namespace GuestMemory.Core.Userfault;

/// <summary>What a handler does for one VM at the moment.</summary>
public enum UffdVmCondition
{
    /// <summary>It answers the VM's faults; pages of it are missing.</summary>
    Serving,
    /// <summary>The same, and the limit of memory keeps pages of the VM from being filled ahead.</summary>
    Limited,
    /// <summary>Every page of the VM has come, or was given back.</summary>
    Restored,
    /// <summary>The process that answers faults has ended and no other is ready yet.</summary>
    Recovering,
}
