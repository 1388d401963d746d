using System.Runtime.InteropServices;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>A command about passed-through devices and the buffers they share (crosvm's <c>VirtioIOMMUVfioCommand</c>).</summary>
public abstract record VirtioIommuVfioCommand
{
    private VirtioIommuVfioCommand()
    {
    }

    /// <summary>Adds a device.</summary>
    /// <param name="EndpointAddress">The PCI address, as a number.</param>
    /// <param name="WrapperId">Which of its containers it belongs to.</param>
    /// <param name="Container">The VFIO container.</param>
    public sealed record VfioDeviceAdd([property: JsonPropertyName("endpoint_addr")] uint EndpointAddress, uint WrapperId, SafeHandle Container) : VirtioIommuVfioCommand;

    /// <summary>Removes a device.</summary>
    /// <param name="EndpointAddress">The PCI address, as a number.</param>
    public sealed record VfioDeviceDel([property: JsonPropertyName("endpoint_addr")] uint EndpointAddress) : VirtioIommuVfioCommand;

    /// <summary>Maps a buffer.</summary>
    /// <param name="RegionId">The id by which it is unmapped.</param>
    /// <param name="GuestAddress">The guest physical address; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    /// <param name="DmaBuf">The buffer.</param>
    public sealed record VfioDmabufMap(ulong RegionId, [property: JsonPropertyName("gpa")] ulong GuestAddress, ulong Size, SafeHandle DmaBuf) : VirtioIommuVfioCommand;

    /// <summary>Unmaps a buffer.</summary>
    /// <param name="RegionId">The buffer's region id.</param>
    public sealed record VfioDmabufUnmap(ulong RegionId) : VirtioIommuVfioCommand;
}
