using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>
/// What a request about a VM's memory asks of the VM (crosvm's Vm, as far as memory goes): <see cref="KvmVm"/> does it on /dev/kvm.
/// Every operation that fails throws a <see cref="SyscallException"/>, whose error number is the one that upstream returns, and
/// changes nothing.
/// </summary>
public interface IVm : IDisposable
{
    /// <summary>The base memory: what the VM was made with. Memory that is added later is no part of it.</summary>
    GuestMemoryMmap Memory { get; }

    /// <summary>Puts memory into the guest, in the lowest slot that is free.</summary>
    /// <param name="address">The guest physical address of its first byte.</param>
    /// <param name="mapping">The memory; the VM's from here on, but still the caller's where this fails. Its size is rounded up to pages.</param>
    /// <param name="readOnly">A guest's write does not reach the memory, but comes out as MMIO.</param>
    /// <param name="logDirtyPages">Has the pages that the guest writes logged.</param>
    /// <param name="cache">Whose choice of caching holds.</param>
    /// <returns>The slot.</returns>
    /// <exception cref="SyscallException">EOVERFLOW: it would end past 2^64. ENOSPC: it overlaps the base memory. EEXIST: it overlaps another slot. What KVM says.</exception>
    uint AddMemoryRegion(GuestAddress address, MappedRegion mapping, bool readOnly, bool logDirtyPages, MemCacheType cache);

    /// <summary>Takes the memory of a slot away from the guest. The slot is free again.</summary>
    /// <returns>The memory, which is the caller's to dispose.</returns>
    /// <exception cref="SyscallException">ENOENT: no such slot was added. What KVM says; the slot stays then.</exception>
    MappedRegion RemoveMemoryRegion(uint slot);

    /// <summary>Maps a part of a file over a part of a slot's arena; what was mapped there is replaced.</summary>
    /// <param name="slot">A slot whose memory is a <see cref="MemoryMappingArena"/>.</param>
    /// <param name="offset">Where in the arena, in bytes; a multiple of the page size.</param>
    /// <param name="size">The bytes to map, rounded up to pages by the kernel.</param>
    /// <param name="file">The file; a duplicate is not kept.</param>
    /// <param name="fileOffset">Where in the file, in bytes.</param>
    /// <param name="protection">What may be done there.</param>
    /// <exception cref="SyscallException">EINVAL: no such slot. EIO: no arena, not aligned, or outside of it. What mmap(2) says.</exception>
    void AddFdMapping(uint slot, ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection);

    /// <summary>Takes away what was mapped over a part of a slot's arena: it reads as zero then, and cannot be written.</summary>
    /// <exception cref="SyscallException">As <see cref="AddFdMapping"/>.</exception>
    void RemoveMapping(uint slot, ulong offset, ulong size);

    /// <summary>Writes what was changed in a part of a slot's memory back to its files (<c>msync(2)</c>, MS_SYNC).</summary>
    /// <param name="slot">The slot.</param>
    /// <param name="offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="size">The length in bytes.</param>
    /// <exception cref="SyscallException">ENOENT: no such slot. EFAULT: outside of it. EINVAL: not aligned. What the kernel says.</exception>
    void MsyncMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Has the host reclaim a part of a slot's memory: the content goes to swap or to its file (MADV_PAGEOUT).</summary>
    /// <exception cref="SyscallException">As <see cref="MsyncMemoryRegion"/>.</exception>
    void MadvisePageoutMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Frees a part of a slot's memory, and of the file behind it: it reads as zero then (MADV_REMOVE).</summary>
    /// <exception cref="SyscallException">As <see cref="MsyncMemoryRegion"/>.</exception>
    void MadviseRemoveMemoryRegion(uint slot, ulong offset, ulong size);

    /// <summary>Does what a balloon asks for: an inflation frees base memory, all else needs nothing here.</summary>
    /// <exception cref="SyscallException">EIO: the range is not all base memory. What madvise(2) says.</exception>
    void HandleBalloonEvent(BalloonEvent balloonEvent);

    /// <summary>Has a guest's store to an address signal an eventfd instead of leaving the guest.</summary>
    /// <param name="eventFd">The eventfd; KVM keeps it open.</param>
    /// <param name="address">The address.</param>
    /// <param name="datamatch">Which stores count.</param>
    /// <exception cref="SyscallException">EEXIST: it is registered already. EINVAL; what KVM says.</exception>
    void RegisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch);

    /// <summary>The opposite, with the same arguments.</summary>
    /// <exception cref="SyscallException">ENOENT: it is not registered. What KVM says.</exception>
    void UnregisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch);
}
