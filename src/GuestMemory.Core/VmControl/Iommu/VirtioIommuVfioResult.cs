namespace GuestMemory.Core.VmControl;

/// <summary>The virtio-iommu's result of a command (crosvm's <c>VirtioIOMMUVfioResult</c>).</summary>
public enum VirtioIommuVfioResult
{
    /// <summary>It was done.</summary>
    Ok,

    /// <summary>The device is not in a range that the IOMMU serves.</summary>
    NotInPCIRanges,

    /// <summary>No container can take the device.</summary>
    NoAvailableContainer,

    /// <summary>The device is unknown.</summary>
    NoSuchDevice,

    /// <summary>The buffer is unknown.</summary>
    NoSuchMappedDmabuf,

    /// <summary>An address is not page aligned.</summary>
    InvalidParam,
}
