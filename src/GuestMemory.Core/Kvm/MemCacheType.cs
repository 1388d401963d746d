namespace GuestMemory.Core;

/// <summary>Whose choice of caching holds for memory of a guest (crosvm's MemCacheType).</summary>
public enum MemCacheType
{
    /// <summary>The hypervisor's: the host's ordinary, coherent memory type.</summary>
    CacheCoherent,

    /// <summary>The guest's; honoured only by kernels that know it (a patch of ChromeOS), and coherent elsewhere.</summary>
    CacheNonCoherent,
}
