namespace GuestMemory.Core.VmControl;

/// <summary>A request to the virtio-iommu device (crosvm's <c>VirtioIOMMURequest</c>).</summary>
public abstract record VirtioIommuRequest
{
    private VirtioIommuRequest()
    {
    }

    /// <summary>About a device that is passed through.</summary>
    /// <param name="Command">What to do.</param>
    public sealed record VfioCommand(VirtioIommuVfioCommand Command) : VirtioIommuRequest;
}
