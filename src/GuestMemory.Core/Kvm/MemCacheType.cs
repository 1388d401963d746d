namespace GuestMemory.Core.Kvm;

/// <summary>Whose choice of caching holds for memory of a guest (crosvm's MemCacheType).</summary>
public enum MemCacheType
{
    /// <summary>The hypervisor's: the host's ordinary, coherent memory type.</summary>
    CacheCoherent,

    /// <summary>The guest's: a wish, accepted and passed on. <see cref="KvmVm"/> maps it as <see cref="CacheCoherent"/>, as upstream does on every kernel but that of ChromeOS.</summary>
    CacheNonCoherent,
}
