using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// A range of addresses that files are mapped into, here and there (crosvm's MemoryMappingArena): one slot of a VM whose content comes
/// and goes. Where nothing is mapped it reads as zero and cannot be written.
/// </summary>
public sealed class SlotArena : SlotMemory
{
    private const MapFlags Reserved = MapFlags.Anonymous | MapFlags.Shared | MapFlags.NoReserve;

    /// <summary>Reserves the range.</summary>
    /// <param name="size">The bytes.</param>
    /// <exception cref="SyscallException">EINVAL: the size is 0. ENOMEM.</exception>
    public SlotArena(ulong size)
        : base(SlotMapping.Map(size, MemoryProtection.Read, Reserved, null, 0))
    {
    }

    private SlotArena(MmapRegion memory)
        : base(memory)
    {
    }

    /// <summary>Makes an arena of a mapping, whose content stays; the mapping is not to be used or disposed any more.</summary>
    public static SlotArena FromMapping(SlotMapping mapping)
    {
        ArgumentNullException.ThrowIfNull(mapping);
        return new SlotArena(mapping.Memory);
    }

    /// <inheritdoc/>
    public override void AddFdMapping(ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection)
    {
        ArgumentNullException.ThrowIfNull(file);
        CheckRange(offset, size);
        var from = SlotMapping.CheckOffset(fileOffset);
        // The kernel maps whole huge pages, also past the end of the arena, over whatever lies there.
        if (FileStatus.HugetlbfsPageSize(file) is var huge and not 0 && size % (ulong)huge != 0)
            throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"Huge pages are mapped whole: 0x{size:x} bytes are not a multiple of {huge}.");
        using var lease = new DescriptorLease(file);
        Replace(offset, size, protection, SlotMapping.FlagsFor(file) | MapFlags.NoReserve, lease.Number, from);
    }

    /// <summary>Maps fresh memory over a part of the arena.</summary>
    /// <param name="offset">Where, in bytes; a multiple of the page size.</param>
    /// <param name="size">The bytes to map.</param>
    /// <param name="protection">What may be done there.</param>
    /// <exception cref="GuestMemoryException">NotPageAligned; InvalidAddress: outside.</exception>
    /// <exception cref="SyscallException">What mmap(2) says.</exception>
    public void AddAnonymous(ulong offset, ulong size, MemoryProtection protection)
    {
        CheckRange(offset, size);
        Replace(offset, size, protection, Reserved, -1, 0);
    }

    /// <inheritdoc/>
    public override void RemoveMapping(ulong offset, ulong size) => AddAnonymous(offset, size, MemoryProtection.Read);

    private void Replace(ulong offset, ulong size, MemoryProtection protection, MapFlags flags, int descriptor, long from)
    {
        var error = ChangeContent(offset, size, address => Mman.TryReplace(address, (nuint)size, (int)protection, (int)flags, descriptor, from));
        if (error != 0) throw new SyscallException("mmap", error, $"Mapping 0x{size:x} bytes at offset 0x{offset:x} of the arena");
    }
}
