namespace GuestMemory.Core.Xen;

/// <summary>What flags of a Xen mapping say (vm-memory's MmapXenFlags).</summary>
public static class MmapXenFlagsExtensions
{
    /// <summary>Whether it is an ordinary mapping: no flag at all.</summary>
    public static bool IsUnix(this MmapXenFlags flags) => flags == MmapXenFlags.Unix;

    /// <summary>Whether frames of another domain are mapped.</summary>
    public static bool IsForeign(this MmapXenFlags flags) => (flags & MmapXenFlags.Foreign) != 0;

    /// <summary>Whether granted pages are mapped.</summary>
    public static bool IsGrant(this MmapXenFlags flags) => (flags & MmapXenFlags.Grant) != 0;

    /// <summary>Whether the memory is mapped when the region is made, and not for each access (mmap_in_advance).</summary>
    public static bool MapsInAdvance(this MmapXenFlags flags) => (flags & MmapXenFlags.NoAdvanceMap) == 0;

    /// <summary>Whether the flags are known, and can be together: 0, 1, 2 and 10 are valid.</summary>
    public static bool IsValid(this MmapXenFlags flags) => (flags & ~(MmapXenFlags.All | MmapXenFlags.NoAdvanceMap)) == 0
        && (flags.IsGrant() ? !flags.IsForeign() : (flags.IsForeign() || flags.IsUnix()) && flags.MapsInAdvance());
}
