namespace GuestMemory.Core.Userfault;

/// <summary>What follows where a page cannot be read, also not within <see cref="UffdHandlerOptions.SourceTimeout"/>.</summary>
public enum UffdOnError
{
    /// <summary>That page alone is poisoned: a thread that touches it gets SIGBUS. A kernel before 6.6 cannot do that; there the VMM is killed.</summary>
    Poison,
    /// <summary>The VMM is killed, so that no VM goes on with memory that is not whole. Where it may not be killed, the page is poisoned.</summary>
    Kill,
    /// <summary>The handler ends, and every VM of its waits at the next page that it misses.</summary>
    Stop,
}
