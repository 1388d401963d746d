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

    /// <summary>When its source failed first.</summary>
    public long FailingSince;

    /// <summary>How often a removal was under way when it was tried.</summary>
    public int Removals;

    /// <summary>The part of the image that it waits for; null for none.</summary>
    public UffdFetch? Fetch;

    /// <summary>Whether that part has been fetched since it was last found to be missing.</summary>
    public bool IsFetched;

    /// <summary>Whether it was said that the host has no memory for it.</summary>
    public bool IsShort;

    public bool IsDeferred;

    /// <summary>Whether it was left to its slice of a replay so far.</summary>
    public bool IsHeld;

    /// <summary>Whether that took too long: it is answered by itself.</summary>
    public bool IsHeldNoMore;
}
