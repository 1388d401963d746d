using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// Memory for a slot of a VM (crosvm's MappedRegion): a <see cref="SlotMapping"/>, which is one mapping, or a <see cref="SlotArena"/>,
/// which consists of many. It owns its mappings; a change of its content is marked in the memory's dirty bitmap.
/// </summary>
public abstract class SlotMemory : IDisposable
{
    private protected SlotMemory(MmapRegion memory) => Memory = memory;

    /// <summary>The memory, to be read and written by the host; accesses are guarded.</summary>
    public MmapRegion Memory { get; }

    /// <summary>The length in bytes, not rounded to pages.</summary>
    public ulong Size => Memory.Size;

    /// <summary>Where it is mapped in this process.</summary>
    public ulong HostAddress => Memory.HostAddress;

    /// <summary>Maps a part of a file over a part of the memory. Only an arena can.</summary>
    /// <param name="offset">Where in the memory, in bytes; a multiple of the page size.</param>
    /// <param name="size">The bytes to map.</param>
    /// <param name="file">The file.</param>
    /// <param name="fileOffset">Where in the file, in bytes.</param>
    /// <param name="protection">The protection of the mapping.</param>
    /// <exception cref="GuestMemoryException">AddFdMappingIsUnsupported; NotPageAligned; InvalidAddress: outside; InvalidOffset; UnalignedSize: a part of a huge page.</exception>
    /// <exception cref="SyscallException">Any error of mmap(2).</exception>
    public virtual void AddFdMapping(ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection) =>
        throw new GuestMemoryException(GuestMemoryError.AddFdMappingIsUnsupported, "Files can be mapped only into an arena; this memory is a single mapping.");

    /// <summary>Removes the mappings over a part of the memory: it then reads as zero and cannot be written. Only an arena can.</summary>
    /// <exception cref="GuestMemoryException">RemoveMappingIsUnsupported; NotPageAligned; InvalidAddress: outside.</exception>
    /// <exception cref="SyscallException">Any error of mmap(2).</exception>
    public virtual void RemoveMapping(ulong offset, ulong size) =>
        throw new GuestMemoryException(GuestMemoryError.RemoveMappingIsUnsupported, "Mappings can be removed only from an arena; this memory is a single mapping.");

    /// <summary>Writes changes back to the files behind the memory, and waits for it (MS_SYNC).</summary>
    /// <param name="offset">Where, in bytes; a multiple of the page size.</param>
    /// <param name="size">The length in bytes.</param>
    /// <exception cref="GuestMemoryException">NotPageAligned; InvalidAddress: outside; RegionDisposed.</exception>
    /// <exception cref="SyscallException">Any error of msync(2).</exception>
    public void Msync(ulong offset, ulong size)
    {
        CheckRange(offset, size);
        using var lease = Memory.Lease();
        var error = Mman.TrySync(lease.Address + (nint)offset, (nuint)size, Mman.MS_SYNC);
        if (error != 0) throw new SyscallException("msync", error, $"Writing back 0x{size:x} bytes at offset 0x{offset:x}");
    }

    /// <summary>Pages a range out (MADV_PAGEOUT); the content stays.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Msync"/>.</exception>
    /// <exception cref="SyscallException">Any error of madvise(2).</exception>
    public void Pageout(ulong offset, ulong size)
    {
        CheckRange(offset, size);
        using var lease = Memory.Lease();
        var error = Mman.TryAdvise(lease.Address + (nint)offset, (nuint)size, Mman.MADV_PAGEOUT);
        if (error != 0) throw new SyscallException("madvise", error, $"Paging out 0x{size:x} bytes at offset 0x{offset:x}");
    }

    /// <summary>Frees the pages of a range and of the file behind it (MADV_REMOVE); it reads as zero then, and is marked as written.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Msync"/>.</exception>
    /// <exception cref="SyscallException">Any error of madvise(2).</exception>
    public void Remove(ulong offset, ulong size)
    {
        CheckRange(offset, size);
        var error = ChangeContent(offset, size, address => Mman.TryAdvise(address, (nuint)size, Mman.MADV_REMOVE));
        if (error != 0) throw new SyscallException("madvise", error, $"Removing 0x{size:x} bytes at offset 0x{offset:x}");
    }

    /// <summary>The kind and its memory, for debuggers and messages.</summary>
    public override string ToString() => $"{GetType().Name}, {Memory}";

    /// <summary>Unmaps the memory.</summary>
    public void Dispose()
    {
        Memory.Dispose();
        Release();
        GC.SuppressFinalize(this);
    }

    /// <summary>Changes the content of a range otherwise than by writing to it; see <see cref="MmapRegion.ChangeContent"/>.</summary>
    private protected virtual int ChangeContent(ulong offset, ulong size, Func<nint, int> change) => Memory.ChangeContent(offset, size, change);

    /// <summary>Releases the region that owns the memory.</summary>
    private protected virtual void Release()
    {
    }

    /// <summary>Checks that a range begins with a page and lies in the memory.</summary>
    private protected void CheckRange(ulong offset, ulong size)
    {
        if (!HostPage.IsAligned(offset, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The offset 0x{offset:x} is not a multiple of the page size, {HostPage.Size} bytes.") { Address = offset };
        if (offset > Size || size > Size - offset)
            throw new GuestMemoryException(GuestMemoryError.InvalidAddress, $"0x{size:x} bytes at offset 0x{offset:x} leave the memory of 0x{Size:x} bytes.") { Address = offset };
    }
}
