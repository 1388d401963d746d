namespace GuestMemory.Core.Xen;

/// <summary>How a range of a Xen guest's memory is mapped (vm-memory's MmapXenFlags; vhost-user's xen_mmap_flags).</summary>
[Flags]
public enum MmapXenFlags : uint
{
    /// <summary>UNIX: an ordinary mapping of a file or of anonymous memory.</summary>
    Unix = 0,
    /// <summary>FOREIGN: frames of another domain, by <c>/dev/xen/privcmd</c>.</summary>
    Foreign = 1,
    /// <summary>GRANT: pages that another domain grants, by <c>/dev/xen/gntdev</c>.</summary>
    Grant = 2,
    /// <summary>NO_ADVANCE_MAP, with Grant: a page is mapped for each access to it, and at no other time.</summary>
    NoAdvanceMap = 8,
    /// <summary>ALL: both kinds of Xen mapping, which exclude each other.</summary>
    All = Foreign | Grant,
}
