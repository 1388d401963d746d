namespace GuestMemory.Core.Interop;

/// <summary>Whose descriptor a loop watches.</summary>
internal interface IWatched
{
    /// <summary>There is something to read, or the other end is gone.</summary>
    void Ready();
}
