namespace GuestMemory.Core.Userfault;

/// <summary>How faults are answered, and what comes without one.</summary>
public enum UffdStrategy
{
    /// <summary>The faulting page is answered at once, and everything else is brought in beside it while nothing faults.</summary>
    Background,
    /// <summary>The page that was touched, when it is touched.</summary>
    OnDemand,
    /// <summary>Everything is brought in as fast as can be, from the hand-over on.</summary>
    FaultAll,
    /// <summary>The aligned block around the page that was touched.</summary>
    Window,
    /// <summary>What a recorded run touched is brought in first, in one go; then the page that was touched.</summary>
    Replay,
}
