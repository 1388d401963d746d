using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Sends the virtio-iommu the buffers that requests register (crosvm's <c>VmMemoryRequestIommuClient</c>), over a tube. A failure to
/// send or receive is an answer, too, with the error number.
/// </summary>
/// <param name="tube">The tube to the device; owned by the caller. Set time limits on it: otherwise a device that hangs delays every request.</param>
public sealed class VmMemoryRequestIommuClient(Tube tube)
{
    private readonly Tube _tube = tube ?? throw new ArgumentNullException(nameof(tube));
    private readonly HashSet<ulong> _registered = [];
    private int _unanswered;

    /// <summary>The region ids whose buffers are mapped.</summary>
    public IReadOnlySet<ulong> RegisteredMemory => _registered;

    /// <summary>Maps a buffer of a region, and remembers the region where that succeeds.</summary>
    internal VirtioIommuResponse Map(ulong address, ulong size, SafeHandle buffer)
    {
        var response = Ask(new VirtioIommuVfioCommand.VfioDmabufMap(address, address, size, buffer));
        if (response is VirtioIommuResponse.VfioResponse { Result: VirtioIommuVfioResult.Ok }) _registered.Add(address);
        return response;
    }

    /// <summary>Unmaps the buffer of a region, and forgets the region where that succeeds or there was none.</summary>
    internal VirtioIommuResponse Unmap(ulong regionId)
    {
        var response = Ask(new VirtioIommuVfioCommand.VfioDmabufUnmap(regionId));
        if (response is VirtioIommuResponse.VfioResponse { Result: VirtioIommuVfioResult.Ok or VirtioIommuVfioResult.NoSuchMappedDmabuf }) _registered.Remove(regionId);
        return response;
    }

    private VirtioIommuResponse Ask(VirtioIommuVfioCommand command)
    {
        try
        {
            // A late answer to an earlier command must not be taken for the answer to this one.
            while (_unanswered > 0) _ = Answer();
            _tube.Send(new VirtioIommuRequest.VfioCommand(command), VmControlJson.Default.VirtioIommuRequest);
            _unanswered++;
            return Answer();
        }
        catch (SyscallException exception)
        {
            return new VirtioIommuResponse.Err(exception.ErrorCode);
        }
        catch (ObjectDisposedException)
        {
            return new VirtioIommuResponse.Err(Errno.EBADF);
        }
        catch (GuestMemoryException exception)
        {
            return new VirtioIommuResponse.Err(exception.Error == GuestMemoryError.Disconnected ? Errno.EPIPE : Errno.EINVAL);
        }
    }

    private VirtioIommuResponse Answer()
    {
        try
        {
            var response = _tube.Receive(VmControlJson.Default.VirtioIommuResponse);
            _unanswered--;
            return response;
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.BadJson or GuestMemoryError.PacketTooLarge or GuestMemoryError.RecvTooManyFds)
        {
            _unanswered--;
            throw;
        }
    }
}
