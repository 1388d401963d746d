namespace GuestMemory.UffdHost;

/// <summary>Whose descriptor the supervisor's loop watches.</summary>
internal interface IWatched
{
    /// <summary>There is something to read, or the other end is gone.</summary>
    void Ready();
}
