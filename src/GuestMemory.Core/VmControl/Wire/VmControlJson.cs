using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// How everything that goes through tubes is written: as serde_json writes it, in the order of the declarations. Reading is as
/// strict as serde: every member must be there, once; one that is not known is ignored.
/// </summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    MaxDepth = 16,
    AllowDuplicateProperties = false,
    RespectNullableAnnotations = true,
    RespectRequiredConstructorParameters = true,
    Converters =
    [
        typeof(VmMemoryRequestConverter), typeof(VmMemorySourceConverter), typeof(VmMemoryDestinationConverter), typeof(VmMemoryResponseConverter),
        typeof(AllocConverter), typeof(AddressIntervalConverter), typeof(MemCacheTypeConverter), typeof(DatamatchConverter), typeof(ProtectionConverter),
        typeof(VmMemoryRangeConverter), typeof(DescriptorConverter), typeof(VirtioIommuRequestConverter), typeof(VirtioIommuVfioCommandConverter),
        typeof(VirtioIommuVfioResultConverter), typeof(VirtioIommuResponseConverter), typeof(VmMemoryMappingRequestConverter), typeof(FsMappingRequestConverter), typeof(VmResponseConverter),
    ])]
[JsonSerializable(typeof(VmMemoryRequest))]
[JsonSerializable(typeof(VmMemoryRequest.PrepareSharedMemoryRegion))]
[JsonSerializable(typeof(VmMemoryRequest.RegisterMemory), TypeInfoPropertyName = "RequestRegisterMemory")]
[JsonSerializable(typeof(VmMemoryRequest.MmapAndRegisterMemory))]
[JsonSerializable(typeof(VmMemoryRequest.DynamicallyFreeMemoryRanges))]
[JsonSerializable(typeof(VmMemoryRequest.DynamicallyReclaimMemoryRanges))]
[JsonSerializable(typeof(VmMemoryRequest.BalloonTargetReached))]
[JsonSerializable(typeof(IoEventUpdateRequest))]
[JsonSerializable(typeof(VmMemoryFileMapping[]))]
[JsonSerializable(typeof(SharedMemory))]
[JsonSerializable(typeof(VmMemorySource.Descriptor), TypeInfoPropertyName = "SourceDescriptor")]
[JsonSerializable(typeof(VmMemorySource.Vulkan))]
[JsonSerializable(typeof(VmMemorySource.ExternalMapping))]
[JsonSerializable(typeof(VmMemoryDestination.ExistingAllocation))]
[JsonSerializable(typeof(VmMemoryResponse))]
[JsonSerializable(typeof(VmMemoryResponse.RegisterMemory))]
[JsonSerializable(typeof(IReadOnlyList<string>))]
[JsonSerializable(typeof(Alloc.PciBar))]
[JsonSerializable(typeof(Alloc.PciBridgeWindow))]
[JsonSerializable(typeof(Alloc.PciBridgePrefetchWindow))]
[JsonSerializable(typeof(AddressInterval))]
[JsonSerializable(typeof(WireRange))]
[JsonSerializable(typeof(WireProtection))]
[JsonSerializable(typeof(Tube))]
[JsonSerializable(typeof(VirtioIommuRequest))]
[JsonSerializable(typeof(VirtioIommuVfioCommand.VfioDeviceAdd))]
[JsonSerializable(typeof(VirtioIommuVfioCommand.VfioDeviceDel))]
[JsonSerializable(typeof(VirtioIommuVfioCommand.VfioDmabufMap))]
[JsonSerializable(typeof(VirtioIommuVfioCommand))]
[JsonSerializable(typeof(VirtioIommuVfioResult))]
[JsonSerializable(typeof(VirtioIommuResponse))]
[JsonSerializable(typeof(VmMemoryMappingRequest))]
[JsonSerializable(typeof(VmMemoryMappingRequest.MsyncArena))]
[JsonSerializable(typeof(VmMemoryMappingRequest.MadvisePageout))]
[JsonSerializable(typeof(VmMemoryMappingRequest.MadviseRemove))]
[JsonSerializable(typeof(FsMappingRequest))]
[JsonSerializable(typeof(FsMappingRequest.CreateMemoryMapping))]
[JsonSerializable(typeof(FsMappingRequest.RemoveMemoryMapping))]
[JsonSerializable(typeof(VmResponse))]
[JsonSerializable(typeof(VmResponse.RegisterMemory), TypeInfoPropertyName = "VmResponseRegisterMemory")]
[JsonSerializable(typeof(ulong))]
[JsonSerializable(typeof(int))]
internal sealed partial class VmControlJson : JsonSerializerContext;
