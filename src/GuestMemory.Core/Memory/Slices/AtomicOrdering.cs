namespace GuestMemory.Core;

/// <summary>What an atomic access promises about the accesses around it; the names and meanings of C11 and Rust.</summary>
public enum AtomicOrdering
{
    /// <summary>Nothing but that it does not tear.</summary>
    Relaxed,
    /// <summary>Loads only: nothing behind it comes before it.</summary>
    Acquire,
    /// <summary>Stores only: nothing before it comes behind it.</summary>
    Release,
    /// <summary>All accesses of this kind have one order that every thread sees.</summary>
    SeqCst,
}
