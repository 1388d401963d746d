namespace GuestMemory.Core.Userfault;

/// <summary>What came of filling ahead.</summary>
internal enum FillOutcome
{
    /// <summary>Pages came, or one was passed over; there may be more.</summary>
    Filled,
    /// <summary>Events are being read: again in a moment.</summary>
    Busy,
    /// <summary>The host has no page to give now.</summary>
    NoMemory,
    /// <summary>The handler's fills may bring no more in.</summary>
    NoRoom,
    /// <summary>Nothing is left to fill.</summary>
    Complete,
    /// <summary>The VM has ended.</summary>
    Gone,
}
