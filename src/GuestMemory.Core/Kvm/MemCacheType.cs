namespace GuestMemory.Core.Kvm;

/// <summary>Whether the host or the guest chooses the memory type of guest memory (crosvm's MemCacheType).</summary>
public enum MemCacheType
{
    /// <summary>The host chooses: its ordinary, coherent memory type.</summary>
    CacheCoherent,

    /// <summary>The guest chooses. <see cref="KvmVm"/> treats it as <see cref="CacheCoherent"/>, as upstream does on every kernel but that of ChromeOS.</summary>
    CacheNonCoherent,
}
