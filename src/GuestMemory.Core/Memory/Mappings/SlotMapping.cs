using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// One mapping for a slot of a VM (crosvm's MemoryMapping): anonymous memory or a part of a file, always shared, except for a file
/// that is sealed against writes. It is left out of core dumps and offered for merging (KSM).
/// </summary>
public sealed class SlotMapping : SlotMemory
{
    private MmapRegion? _owner;

    private SlotMapping(MmapRegion memory)
        : base(memory)
    {
    }

    /// <summary>Maps fresh anonymous memory that is shared with whoever this process forks.</summary>
    /// <param name="size">The bytes.</param>
    /// <param name="protection">What may be done with it.</param>
    /// <exception cref="SyscallException">EINVAL: the size is 0. ENOMEM.</exception>
    public static SlotMapping Anonymous(ulong size, MemoryProtection protection = MemoryProtection.ReadWrite) =>
        new(Map(size, protection, MapFlags.Anonymous | MapFlags.NoReserve | MapFlags.Shared, null, 0));

    /// <summary>Maps a part of a file. A mapping may pass the end of its file: what lies there cannot be accessed.</summary>
    /// <param name="file">The file; it stays the caller's.</param>
    /// <param name="fileOffset">Where it begins, in bytes; a multiple of the page size.</param>
    /// <param name="size">The bytes.</param>
    /// <param name="protection">What may be done with it.</param>
    /// <param name="populate">Brings every page in at once.</param>
    /// <exception cref="GuestMemoryException">InvalidOffset: past 2^63 - 1.</exception>
    /// <exception cref="SyscallException">EINVAL: the size is 0. EBADF; what mmap(2) says.</exception>
    public static SlotMapping FromFile(SafeHandle file, ulong fileOffset, ulong size, MemoryProtection protection = MemoryProtection.ReadWrite, bool populate = false)
    {
        ArgumentNullException.ThrowIfNull(file);
        return new SlotMapping(Map(size, protection, FlagsFor(file) | (populate ? MapFlags.Populate : MapFlags.None), file, fileOffset));
    }

    /// <summary>Wraps memory that somebody else mapped, and will unmap; it must stay as long as this lives.</summary>
    /// <param name="pointer">Its first byte, at the start of a page.</param>
    /// <param name="size">The bytes.</param>
    /// <param name="owner">The region whose memory it is, which then stays mapped as long as this lives; null where nobody knows.</param>
    /// <exception cref="GuestMemoryException">InvalidPointer: it does not begin with a page. InvalidAddress: it leaves the owner's memory. RegionDisposed.</exception>
    public static SlotMapping External(nint pointer, ulong size, MmapRegion? owner = null)
    {
        if (owner is not null && ((ulong)pointer < owner.HostAddress || size > owner.Size || (ulong)pointer - owner.HostAddress > owner.Size - size))
            throw new GuestMemoryException(GuestMemoryError.InvalidAddress, $"0x{size:x} bytes at 0x{pointer:x} leave the region's memory.");
        var mapping = new SlotMapping(new MmapRegionBuilder(size).WithRawPointer(pointer).Build());
        try
        {
            if (owner?.IsDisposed == true) throw VolatileMemory.RegionDisposed();
            owner?.KeepMapped();
        }
        catch (ObjectDisposedException exception)
        {
            throw VolatileMemory.RegionDisposed(exception);
        }

        mapping._owner = owner;
        return mapping;
    }

    /// <inheritdoc/>
    /// <remarks>What is borrowed from a region changes for the region, too.</remarks>
    private protected override int ChangeContent(ulong offset, ulong size, Func<nint, int> change) => _owner is { } owner
        ? owner.ChangeContent(HostAddress - owner.HostAddress + offset, size, _ => base.ChangeContent(offset, size, change))
        : base.ChangeContent(offset, size, change);

    /// <inheritdoc/>
    private protected override void Release() => Interlocked.Exchange(ref _owner, null)?.LetUnmap();

    /// <summary>How a file is mapped: shared, but for one whose pages nobody may write.</summary>
    internal static MapFlags FlagsFor(SafeHandle file) => (Memfd.Seals(file) & Memfd.F_SEAL_WRITE) != 0 ? MapFlags.Private : MapFlags.Shared;

    /// <summary>Makes the mapping of a file offset that fits the system call.</summary>
    internal static long CheckOffset(ulong fileOffset) => fileOffset <= long.MaxValue
        ? (long)fileOffset
        : throw new GuestMemoryException(GuestMemoryError.InvalidOffset, $"The file offset {fileOffset} is past the largest one, 2^63 - 1.") { Address = fileOffset };

    internal static MmapRegion Map(ulong size, MemoryProtection protection, MapFlags flags, SafeHandle? file, ulong fileOffset)
    {
        var offset = CheckOffset(fileOffset);
        var what = file is null ? $"Mapping {size} bytes of anonymous memory" : $"Mapping {size} bytes of a file from offset {fileOffset}";
        if (size > long.MaxValue) throw new SyscallException("mmap", Errno.ENOMEM, what);
        using var lease = file is null ? default : new DescriptorLease(file);
        var length = file is null ? (nuint)size : FileStatus.MappedLength(file, size);
        var mapping = Mman.Map(length, (int)protection, (int)flags, file is null ? -1 : lease.Number, offset, what);
        // Best effort, as upstream: neither changes what the memory is.
        _ = Mman.TryAdvise(mapping.Address, (nuint)size, Mman.MADV_DONTDUMP);
        _ = Mman.TryAdvise(mapping.Address, (nuint)size, Mman.MADV_MERGEABLE);
        return new MmapRegion(mapping, size, HostPage.Size, protection, flags, file is null ? null : Descriptor.PathOf(lease.Number), null, null, owned: true, guarded: true, canShrink: true, tracker: null);
    }
}
