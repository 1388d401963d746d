using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

internal sealed class VmMemoryRequestConverter : TaggedConverter<VmMemoryRequest>
{
    public VmMemoryRequestConverter()
    {
        Struct<VmMemoryRequest.PrepareSharedMemoryRegion>();
        Struct<VmMemoryRequest.RegisterMemory>();
        Struct<VmMemoryRequest.MmapAndRegisterMemory>();
        Struct<VmMemoryRequest.DynamicallyFreeMemoryRanges>();
        Struct<VmMemoryRequest.DynamicallyReclaimMemoryRanges>();
        Struct<VmMemoryRequest.BalloonTargetReached>();
        Newtype<ulong>("UnregisterMemory", static value => (value as VmMemoryRequest.UnregisterMemory)?.RegionId, static id => new VmMemoryRequest.UnregisterMemory(id));
        Newtype<IoEventUpdateRequest>("IoEventRaw", static value => (value as VmMemoryRequest.IoEventRaw)?.Request, static request => new VmMemoryRequest.IoEventRaw(request));
    }
}

internal sealed class VmMemorySourceConverter : TaggedConverter<VmMemorySource>
{
    public VmMemorySourceConverter()
    {
        Newtype<SharedMemory>("SharedMemory", static value => (value as VmMemorySource.SharedMemory)?.Memory, static memory => new VmMemorySource.SharedMemory(memory));
        Struct<VmMemorySource.Descriptor>();
        Struct<VmMemorySource.Vulkan>();
        Struct<VmMemorySource.ExternalMapping>();
    }
}

internal sealed class VmMemoryDestinationConverter : TaggedConverter<VmMemoryDestination>
{
    public VmMemoryDestinationConverter()
    {
        Struct<VmMemoryDestination.ExistingAllocation>();
        Newtype<ulong>("GuestPhysicalAddress", static value => (value as VmMemoryDestination.GuestPhysicalAddress)?.Address, static address => new VmMemoryDestination.GuestPhysicalAddress(address));
    }
}

internal sealed class VmMemoryResponseConverter : TaggedConverter<VmMemoryResponse>
{
    public VmMemoryResponseConverter()
    {
        Unit("Ok", VmMemoryResponse.Ok.Instance);
        Struct<VmMemoryResponse.RegisterMemory>();
        Newtype<IReadOnlyList<string>>("Err", static value => (value as VmMemoryResponse.Err)?.Messages, static messages => messages.Count > 0 && messages.All(static message => message is not null)
            ? new VmMemoryResponse.Err(messages)
            : throw new System.Text.Json.JsonException("an error has at least one message"));
    }
}

internal sealed class AllocConverter : TaggedConverter<Alloc>
{
    public AllocConverter()
    {
        Newtype<ulong>("Anon", static value => (value as Alloc.Anon)?.Id, static id => new Alloc.Anon(id));
        Struct<Alloc.PciBar>();
        Unit("GpuRenderNode", new Alloc.GpuRenderNode());
        Newtype<ulong>("PmemDevice", static value => (value as Alloc.PmemDevice)?.Index, static index => new Alloc.PmemDevice(index));
        Unit("Pstore", new Alloc.Pstore());
        Struct<Alloc.PciBridgeWindow>();
        Struct<Alloc.PciBridgePrefetchWindow>();
        Newtype<ulong>("FileBacked", static value => (value as Alloc.FileBacked)?.Index, static index => new Alloc.FileBacked(index));
    }
}

internal sealed class MemCacheTypeConverter : TaggedConverter<MemCacheType>
{
    public MemCacheTypeConverter()
    {
        Unit("CacheCoherent", MemCacheType.CacheCoherent);
        Unit("CacheNonCoherent", MemCacheType.CacheNonCoherent);
    }
}
