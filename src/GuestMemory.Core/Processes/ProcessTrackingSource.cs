namespace GuestMemory.Core.Processes;

/// <summary>What tells a <see cref="ProcessDirtyTracker"/> which pages a process wrote.</summary>
public enum ProcessTrackingSource
{
    /// <summary>
    /// The kernel notes each write (UFFD_FEATURE_WP_ASYNC). Exact: a page that was written is told once, whatever was written, and no other. Stops a thread of the process for some tenths of
    /// a millisecond. Needs Linux 6.7, the right to trace the process, and memory that no other userfaultfd watches.
    /// </summary>
    Userfault,

    /// <summary>
    /// Each query reads the memory (<c>/proc/PID/mem</c>) and compares a hash of each page (XXH128) with that of the query before. A sample: what was written and written back between two
    /// queries is not told, nor is a page that was written with what it had. Writes of other processes that share the memory are told. A page that comes (by a read, too) or goes is dirty;
    /// one that is not there is not read, and does not come by it. Reads all memory at each query, and holds 16 bytes a page. Only needs the right to read the memory.
    /// </summary>
    Compare,

    /// <summary>
    /// The soft-dirty marks of the kernel (<c>/proc/PID/clear_refs</c>, bit 55 of pagemap), tried on a page of this process before they are believed: many kernels are built without
    /// (CONFIG_MEM_SOFT_DIRTY). Known errors: what is written between the reading and the resetting is lost; resetting takes the marks of all memory of the process, also those of another tracking or tool;
    /// new and merged mappings count as written; a transparent huge page counts whole; pages that were given back are not told. Not for huge pages.
    /// </summary>
    SoftDirty,

    /// <summary>
    /// Which pages are there (pagemap), as mincore(2) tells of one's own. Says only what became present: not what was written again, nor what went; a page that was read for the first time counts, one that
    /// was written after a read does not.
    /// </summary>
    Mincore,

    /// <summary>Userfault, where it is refused SoftDirty, where that does not work Compare; <see cref="ProcessDirtyTracker.Reason"/> says why.</summary>
    Auto,
}
