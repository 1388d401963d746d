namespace GuestMemory.Core.VmControl;

internal sealed class VirtioIommuRequestConverter : TaggedConverter<VirtioIommuRequest>
{
    public VirtioIommuRequestConverter() =>
        Newtype<VirtioIommuVfioCommand>("VfioCommand", static value => (value as VirtioIommuRequest.VfioCommand)?.Command, static command => new VirtioIommuRequest.VfioCommand(command));
}

internal sealed class VirtioIommuVfioCommandConverter : TaggedConverter<VirtioIommuVfioCommand>
{
    public VirtioIommuVfioCommandConverter()
    {
        Struct<VirtioIommuVfioCommand.VfioDeviceAdd>();
        Struct<VirtioIommuVfioCommand.VfioDeviceDel>();
        Struct<VirtioIommuVfioCommand.VfioDmabufMap>();
        Newtype<ulong>("VfioDmabufUnmap", static value => (value as VirtioIommuVfioCommand.VfioDmabufUnmap)?.RegionId, static id => new VirtioIommuVfioCommand.VfioDmabufUnmap(id));
    }
}

internal sealed class VirtioIommuVfioResultConverter : TaggedConverter<VirtioIommuVfioResult>
{
    public VirtioIommuVfioResultConverter()
    {
        foreach (var result in Enum.GetValues<VirtioIommuVfioResult>()) Unit(result.ToString(), result);
    }
}

internal sealed class VirtioIommuResponseConverter : TaggedConverter<VirtioIommuResponse>
{
    public VirtioIommuResponseConverter()
    {
        Unit("Ok", VirtioIommuResponse.Ok.Instance);
        Newtype<int>("Err", static value => (value as VirtioIommuResponse.Err)?.ErrorCode, static error => new VirtioIommuResponse.Err(error));
        Newtype<VirtioIommuVfioResult>("VfioResponse", static value => (value as VirtioIommuResponse.VfioResponse)?.Result, static result => new VirtioIommuResponse.VfioResponse(result));
    }
}
