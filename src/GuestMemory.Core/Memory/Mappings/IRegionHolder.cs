namespace GuestMemory.Core;

/// <summary>Something that relies on a mapping: as long as it lives, the mapping stays unless it is forced away.</summary>
internal interface IRegionHolder
{
    /// <summary>Who holds it, for messages: "the page-fault handler at /run/uffd.sock".</summary>
    string Description { get; }

    /// <summary>Whether the other end is still there.</summary>
    bool IsLive { get; }

    /// <summary>Whether it fills in missing pages, so that an access may have to wait for it.</summary>
    bool ProvidesPages { get; }

    /// <summary>
    /// What a range of the mapping holds is about to change otherwise than by a write (it is given back), on this thread; <see cref="EndChange"/> follows on the same
    /// thread, unless this throws. For a holder that provides pages.
    /// </summary>
    void BeginChange(MmapRegion region, ulong offset, ulong length)
    {
    }

    /// <summary>It has changed, or was not changed after all.</summary>
    void EndChange()
    {
    }

    /// <summary>Lets the mapping go: no thread may go on waiting for its pages, and none may read zeros in their place.</summary>
    void Release(MmapRegion region);
}
