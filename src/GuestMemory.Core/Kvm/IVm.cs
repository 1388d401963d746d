using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>
/// The operations of a VM that requests about its memory need (the memory part of crosvm's Vm); <see cref="KvmVm"/> implements them on
/// /dev/kvm. An operation that fails throws a <see cref="SyscallException"/> with upstream's error number, and changes nothing.
/// </summary>
public interface IVm : IDisposable
{
    /// <summary>The base memory: the memory that the VM was made with, without memory that was added later.</summary>
    GuestMemoryMmap Memory { get; }

    /// <summary>Adds memory to the guest, in the lowest free slot.</summary>
    /// <param name="address">The guest physical address of its first byte.</param>
    /// <param name="mapping">The memory; owned by the VM afterwards, and still by the caller where this fails. Its size is rounded up to pages.</param>
    /// <param name="readOnly">A write of the guest is an MMIO exit and does not change the memory.</param>
    /// <param name="logDirtyPages">Whether KVM logs the pages that the guest writes.</param>
    /// <param name="cache">Whether the host or the guest chooses the memory type.</param>
    /// <returns>The slot.</returns>
    /// <exception cref="SyscallException">EOVERFLOW: it would end past 2^64. ENOSPC: it overlaps the base memory. EEXIST: it overlaps another slot. Any error of KVM.</exception>
    uint AddMemoryRegion(GuestAddress address, SlotMemory mapping, bool readOnly, bool logDirtyPages, MemCacheType cache);

    /// <summary>Removes the memory of a slot from the guest, and frees the slot.</summary>
    /// <returns>The memory; owned by the caller, who disposes it.</returns>
    /// <exception cref="SyscallException">ENOENT: no such slot was added. Any error of KVM; the slot then stays.</exception>
    SlotMemory RemoveMemoryRegion(uint slot);

    /// <summary>Maps a part of a file over a part of a slot's arena; what was mapped there is replaced.</summary>
    /// <param name="slot">A slot whose memory is a <see cref="SlotArena"/>.</param>
    /// <param name="offset">Where in the arena, in bytes; a multiple of the page size.</param>
    /// <param name="size">The bytes to map, rounded up to pages by the kernel.</param>
    /// <param name="file">The file; it may be closed afterwards.</param>
    /// <param name="fileOffset">Where in the file, in bytes.</param>
    /// <param name="protection">The protection of the mapping.</param>
    /// <exception cref="SyscallException">EINVAL: no such slot. EIO: not an arena, not aligned, or outside of it. Any error of mmap(2).</exception>
    void AddFdMapping(uint slot, ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection);

    /// <summary>Removes the mappings over a part of a slot's arena: it then reads as zero and cannot be written.</summary>
    /// <exception cref="SyscallException">As <see cref="AddFdMapping"/>.</exception>
    void RemoveMapping(uint slot, ulong offset, ulong size);

    /// <summary>Writes changes of a part of a slot's memory back to its files (<c>msync(2)</c>, MS_SYNC).</summary>
    /// <param name="slot">The slot.</param>
    /// <param name="offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="size">The length in bytes.</param>
    /// <exception cref="SyscallException">ENOENT: no such slot. EFAULT: outside of it. EINVAL: not aligned. Any error of the kernel.</exception>
    void MsyncMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Pages out a part of a slot's memory, to swap or to its file; the content stays (MADV_PAGEOUT).</summary>
    /// <exception cref="SyscallException">As <see cref="MsyncMemoryRegion"/>.</exception>
    void MadvisePageoutMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Frees a part of a slot's memory and of its file: it then reads as zero (MADV_REMOVE).</summary>
    /// <exception cref="SyscallException">As <see cref="MsyncMemoryRegion"/>.</exception>
    void MadviseRemoveMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Handles a balloon event: Inflate frees base memory, which is marked dirty; the other events need no action.</summary>
    /// <exception cref="SyscallException">EIO: the range is not all base memory. Any error of madvise(2).</exception>
    void HandleBalloonEvent(BalloonEvent balloonEvent);

    /// <summary>Makes stores of the guest to an address signal an eventfd, without an exit.</summary>
    /// <param name="eventFd">The eventfd; KVM keeps it open.</param>
    /// <param name="address">The address.</param>
    /// <param name="datamatch">Which stores signal it.</param>
    /// <exception cref="SyscallException">EEXIST: it is registered already. EINVAL; any error of KVM.</exception>
    void RegisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch);

    /// <summary>Removes a registration; the arguments are those of <see cref="RegisterIoEvent"/>.</summary>
    /// <exception cref="SyscallException">ENOENT: it is not registered. Any error of KVM.</exception>
    void UnregisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch);
}
