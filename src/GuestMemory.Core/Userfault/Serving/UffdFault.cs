namespace GuestMemory.Core.Userfault;

/// <summary>A fault that was read and is to be answered. Times are timestamps.</summary>
internal struct UffdFault
{
    public ulong Address;
    public ulong Flags;
    public long Since;

    /// <summary>When to try again; 0 at once.</summary>
    public long Due;

    /// <summary>How often its source has failed.</summary>
    public int Attempts;

    public bool IsDeferred;

    /// <summary>Whether it is left to the end of a slice of a replay.</summary>
    public bool IsHeld;
}
