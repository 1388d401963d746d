namespace GuestMemory.Core.Userfault;

/// <summary>What follows where a page cannot be read, also after several tries.</summary>
public enum UffdOnError
{
    /// <summary>That page alone is poisoned: who touches it gets SIGBUS.</summary>
    Poison,
    /// <summary>The VMM is killed, so that no VM goes on with memory that is not whole.</summary>
    Kill,
    /// <summary>The handler ends, and every VM of its waits at the next page that it misses.</summary>
    Stop,
}
