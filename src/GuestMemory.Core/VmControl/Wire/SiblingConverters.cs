namespace GuestMemory.Core.VmControl;

internal sealed class VmMemoryMappingRequestConverter : TaggedConverter<VmMemoryMappingRequest>
{
    public VmMemoryMappingRequestConverter()
    {
        Struct<VmMemoryMappingRequest.MsyncArena>();
        Struct<VmMemoryMappingRequest.MadvisePageout>();
        Struct<VmMemoryMappingRequest.MadviseRemove>();
    }
}

internal sealed class FsMappingRequestConverter : TaggedConverter<FsMappingRequest>
{
    public FsMappingRequestConverter()
    {
        Newtype<Alloc>("AllocateSharedMemoryRegion", static value => (value as FsMappingRequest.AllocateSharedMemoryRegion)?.Alloc, static alloc => new FsMappingRequest.AllocateSharedMemoryRegion(alloc));
        Struct<FsMappingRequest.CreateMemoryMapping>();
        Struct<FsMappingRequest.RemoveMemoryMapping>();
    }
}

internal sealed class VmResponseConverter : TaggedConverter<VmResponse>
{
    public VmResponseConverter()
    {
        Unit("Ok", VmResponse.Ok.Instance);
        Struct<VmResponse.RegisterMemory>();
        Newtype<int>("Err", static value => (value as VmResponse.Err)?.ErrorCode, static error => new VmResponse.Err(error));
    }
}
