using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <content>Operations on the memory of slots, balloons, and eventfds.</content>
public sealed partial class KvmVm
{
    /// <inheritdoc/>
    public void AddFdMapping(uint slot, ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection) =>
        ChangeMapping(slot, mapping => mapping.AddFdMapping(offset, size, file, fileOffset, protection));

    /// <inheritdoc/>
    public void RemoveMapping(uint slot, ulong offset, ulong size) => ChangeMapping(slot, mapping => mapping.RemoveMapping(offset, size));

    /// <inheritdoc/>
    public void MsyncMemoryRegion(uint slot, ulong offset, ulong size) => UseMemory(slot, mapping => mapping.Msync(offset, size));

    /// <inheritdoc/>
    public void MadvisePageoutMemoryRegion(uint slot, ulong offset, ulong size) => UseMemory(slot, mapping => mapping.Pageout(offset, size));

    /// <inheritdoc/>
    public void MadviseRemoveMemoryRegion(uint slot, ulong offset, ulong size) => UseMemory(slot, mapping => mapping.Remove(offset, size));

    /// <inheritdoc/>
    public void HandleBalloonEvent(BalloonEvent balloonEvent)
    {
        if (balloonEvent.Kind != BalloonEventKind.Inflate) return;
        var (_, address, size) = balloonEvent;
        if (Memory.ToRegionAddress(address) is not var (region, offset))
            throw new SyscallException("inflate", Errno.EIO, $"Freeing 0x{size:x} bytes at guest address {address}", GuestMemoryError.InvalidGuestAddress, "No base memory lies there.");
        try
        {
            region.GetMmapRegion().Discard(offset.Value, size);
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException)
        {
            throw new SyscallException("inflate", Errno.EIO, $"Freeing 0x{size:x} bytes at guest address {address}", exception.Error, exception.Message);
        }
    }

    /// <inheritdoc/>
    public void RegisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch) => SetIoEvent(eventFd, address, datamatch, 0, "Registering");

    /// <inheritdoc/>
    public void UnregisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch) => SetIoEvent(eventFd, address, datamatch, KvmApi.KVM_IOEVENTFD_FLAG_DEASSIGN, "Unregistering");

    private void SetIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch, uint flags, string what)
    {
        ArgumentNullException.ThrowIfNull(eventFd);
        using var lease = new DescriptorLease(eventFd);
        var argument = new KvmIoeventfd
        {
            datamatch = datamatch.Value ?? 0,
            addr = address.Address,
            len = datamatch.Length,
            fd = lease.Number,
            flags = flags | (address.IsPio ? KvmApi.KVM_IOEVENTFD_FLAG_PIO : 0) | (datamatch.Value is null ? 0 : KvmApi.KVM_IOEVENTFD_FLAG_DATAMATCH),
        };
        lock (_lock)
        {
            ThrowIfDisposed();
            var error = KvmApi.Try(_vm, KvmApi.KVM_IOEVENTFD, ref argument);
            if (error != 0) throw new SyscallException("ioctl(KVM_IOEVENTFD)", error, $"{what} an eventfd at {address}");
        }
    }

    // Upstream reports a wrong range as EIO where mappings change, and by three error numbers where msync or madvise is called.
    private void ChangeMapping(uint slot, Action<SlotMemory> operation)
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            Operate(FindAdded(slot, Errno.EINVAL), operation, static _ => Errno.EIO);
        }
    }

    private void UseMemory(uint slot, Action<SlotMemory> operation)
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            Operate(FindAdded(slot, Errno.ENOENT), operation, static error => error switch
            {
                GuestMemoryError.InvalidAddress => Errno.EFAULT,
                GuestMemoryError.NotPageAligned => Errno.EINVAL,
                _ => Errno.EIO,
            });
        }
    }

    private static void Operate(KvmSlot slot, Action<SlotMemory> operation, Func<GuestMemoryError, int> number)
    {
        try
        {
            operation(slot.GetSlotMemory()!);
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException)
        {
            throw new SyscallException("slot", number(exception.Error), $"Using slot {slot.Slot}", exception.Error, exception.Message);
        }
    }
}
