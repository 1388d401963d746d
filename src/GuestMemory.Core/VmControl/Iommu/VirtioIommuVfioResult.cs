namespace GuestMemory.Core.VmControl;

/// <summary>What the virtio-iommu says about a command (crosvm's <c>VirtioIOMMUVfioResult</c>).</summary>
public enum VirtioIommuVfioResult
{
    /// <summary>It was done.</summary>
    Ok,

    /// <summary>The device is not in a range that the IOMMU serves.</summary>
    NotInPCIRanges,

    /// <summary>No container can take the device.</summary>
    NoAvailableContainer,

    /// <summary>The device is not known.</summary>
    NoSuchDevice,

    /// <summary>The buffer is not known.</summary>
    NoSuchMappedDmabuf,

    /// <summary>An address is not page aligned.</summary>
    InvalidParam,
}
