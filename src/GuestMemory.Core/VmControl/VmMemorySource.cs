using System.Runtime.InteropServices;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>The memory that a request registers in the guest (crosvm's <c>VmMemorySource</c>).</summary>
public abstract record VmMemorySource
{
    private VmMemorySource()
    {
    }

    /// <summary>The variant, as upstream's messages name it: "VmMemorySource::SharedMemory".</summary>
    [JsonIgnore]
    public string DisplayName => $"VmMemorySource::{GetType().Name}";

    /// <summary>Shared memory from its start.</summary>
    /// <param name="Memory">The memory.</param>
    public sealed record SharedMemory(Core.VmControl.SharedMemory Memory) : VmMemorySource;

    /// <summary>A part of a file.</summary>
    /// <param name="File">The file.</param>
    /// <param name="Offset">Where it begins, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record Descriptor([property: JsonPropertyName("descriptor")] SafeHandle File, ulong Offset, ulong Size) : VmMemorySource;

    /// <summary>Memory of a GPU. It is read and written as JSON, and refused when executed: there is no GPU here.</summary>
    /// <param name="File">The memory.</param>
    /// <param name="HandleType">What kind of handle it is.</param>
    /// <param name="MemoryIdx">The index of its memory type.</param>
    /// <param name="DeviceUuid">16 bytes.</param>
    /// <param name="DriverUuid">16 bytes.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record Vulkan([property: JsonPropertyName("descriptor")] SafeHandle File, uint HandleType, uint MemoryIdx, [property: JsonConverter(typeof(UuidConverter))] IReadOnlyList<byte> DeviceUuid,
        [property: JsonConverter(typeof(UuidConverter))] IReadOnlyList<byte> DriverUuid, ulong Size) : VmMemorySource;

    /// <summary>Memory that is mapped in the executing process already; refused from other processes.</summary>
    /// <param name="Pointer">Where; the start of a page.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record ExternalMapping([property: JsonPropertyName("ptr")] ulong Pointer, ulong Size) : VmMemorySource
    {
        /// <summary>The region that owns the memory, where known: the memory stays mapped as long as the VM has it, also when the region is removed.</summary>
        [JsonIgnore]
        public MmapRegion? Owner { get; init; }
    }
}
