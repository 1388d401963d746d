using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>The context in which requests are executed: a VM, its addresses, and its registered memory. One request at a time uses it.</summary>
/// <param name="vm">The VM; owned by the caller.</param>
/// <param name="allocator">Its addresses.</param>
/// <param name="iommuClient">The virtio-iommu, for devices behind one; owned by the caller.</param>
public sealed class VmMemoryContext(IVm vm, SystemAllocator allocator, VmMemoryRequestIommuClient? iommuClient = null)
{
    /// <summary>The most file mappings that one request may announce.</summary>
    public const int MaxFileMappings = 1 << 16;

    /// <summary>The VM.</summary>
    public IVm Vm { get; } = vm ?? throw new ArgumentNullException(nameof(vm));

    /// <summary>Its addresses. Used only while <see cref="Lock"/> is held.</summary>
    public SystemAllocator Allocator { get; } = allocator ?? throw new ArgumentNullException(nameof(allocator));

    /// <summary>The registered memory. Read only while <see cref="Lock"/> is held.</summary>
    public VmMemoryRegionState RegionState { get; } = new();

    /// <summary>The virtio-iommu; null where there is none.</summary>
    public VmMemoryRequestIommuClient? IommuClient { get; } = iommuClient;

    /// <summary>
    /// Whether preparing a register reserves a slot. As upstream only where the host's KVM builds page tables fast enough
    /// (x86-64: its tdp_mmu) unless set; elsewhere it succeeds without doing anything.
    /// </summary>
    public bool PreparesSharedMemory { get; init; } = HostPrepares.Value;

    /// <summary>The time limit for all file mappings that a client has announced (upstream: none).</summary>
    public TimeSpan FileMappingTimeout { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>Held by each request while it is executed.</summary>
    public Lock Lock { get; } = new();

    internal static Lazy<bool> HostPrepares { get; } = new(static () =>
    {
        if (System.Runtime.InteropServices.RuntimeInformation.ProcessArchitecture != System.Runtime.InteropServices.Architecture.X64) return Environment.Is64BitProcess;
        try
        {
            return File.ReadAllText("/sys/module/kvm/parameters/tdp_mmu").StartsWith('Y');
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    });
}
