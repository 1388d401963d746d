namespace GuestMemory.Core.Tests;

/// <summary>A virtio-iommu at the other end of a tube, which answers as it is told and notes what it was asked.</summary>
internal sealed class FakeIommu : IDisposable
{
    private readonly Tube _device;
    private readonly Tube _client;
    private readonly Thread _thread;

    public FakeIommu()
    {
        (_device, _client) = Tube.Pair();
        Client = new VmMemoryRequestIommuClient(_client);
        _thread = new Thread(Serve) { IsBackground = true };
        _thread.Start();
    }

    public VmMemoryRequestIommuClient Client { get; }

    /// <summary>What it answers; null to hang up instead.</summary>
    public VirtioIommuResponse? Answer { get; set; } = new VirtioIommuResponse.VfioResponse(VirtioIommuVfioResult.Ok);

    public List<string> Asked { get; } = [];

    public void Dispose()
    {
        _client.Dispose();
        _thread.Join();
        _device.Dispose();
    }

    private void Serve()
    {
        try
        {
            while (true)
            {
                var command = ((VirtioIommuRequest.VfioCommand)_device.Receive(VmControlJson.Default.VirtioIommuRequest)).Command;
                Asked.Add(command switch
                {
                    VirtioIommuVfioCommand.VfioDmabufMap map => $"map 0x{map.RegionId:x} 0x{map.GuestAddress:x} 0x{map.Size:x}",
                    VirtioIommuVfioCommand.VfioDmabufUnmap unmap => $"unmap 0x{unmap.RegionId:x}",
                    _ => command.ToString(),
                });
                (command as VirtioIommuVfioCommand.VfioDmabufMap)?.DmaBuf.Dispose();
                if (Answer is null)
                {
                    _device.Dispose();
                    return;
                }

                _device.Send(Answer, VmControlJson.Default.VirtioIommuResponse);
            }
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.Disconnected)
        {
            // The client has gone.
        }
    }
}
