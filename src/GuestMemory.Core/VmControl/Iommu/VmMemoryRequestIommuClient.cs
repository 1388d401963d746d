using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Tells the virtio-iommu about buffers that requests register (crosvm's <c>VmMemoryRequestIommuClient</c>), over a tube. Whatever
/// goes wrong on the way is an answer too, with the error number.
/// </summary>
/// <param name="tube">The tube to the device; it stays the caller's. Give it time limits, or a device that hangs holds up every request.</param>
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
            // An answer that came too late must not be taken for the answer to this command.
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
