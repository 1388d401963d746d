using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>The memory table of a front end: regions of the guest, and where the front end has them. It never changes.</summary>
internal sealed class VhostUserMemory
{
    public const int MaxSlots = 509;

    private readonly (GuestRegionMmap Region, ulong UserAddress)[] _slots;

    private VhostUserMemory((GuestRegionMmap Region, ulong UserAddress)[] slots)
    {
        _slots = slots;
        Guest = slots.Length == 0 ? GuestMemoryMmap.Empty : GuestMemoryMmap.FromRegions(slots.Select(static slot => slot.Region).OrderBy(static region => region.GuestAddress));
        CheckUserAddresses();
    }

    public static VhostUserMemory Empty { get; } = new([]);

    public GuestMemoryMmap Guest { get; }

    /// <summary>Where this process has the regions, in the order in which they came.</summary>
    public IEnumerable<ulong> HostAddresses => _slots.Select(static slot => slot.Region.GetMmapRegion().HostAddress);

    /// <summary>Maps a memory table; all of it or nothing.</summary>
    /// <param name="entries">The regions.</param>
    /// <param name="files">Their files, one each, which stay the caller's.</param>
    /// <param name="trusted">Whether the files may be shortened by the front end.</param>
    /// <exception cref="GuestMemoryException">MemoryRegionOverlap, ZeroSize, InvalidGuestRegion, FileNotSealed; what <see cref="MmapRegionBuilder.Build"/> throws.</exception>
    public static VhostUserMemory Map(ReadOnlySpan<VhostMemoryRegion> entries, IReadOnlyList<SafeDescriptor> files, bool trusted)
    {
        var slots = new List<(GuestRegionMmap Region, ulong UserAddress)>();
        try
        {
            for (var i = 0; i < entries.Length; i++) slots.Add((MapRegion(entries[i], files[i], trusted), entries[i].userspace_addr));
            return new VhostUserMemory([.. slots]);
        }
        catch
        {
            foreach (var (region, _) in slots) region.Dispose();
            throw;
        }
    }

    /// <summary>The same table with one more region.</summary>
    /// <exception cref="GuestMemoryException">InvalidOperation: all slots are taken; as <see cref="Map"/>.</exception>
    public (VhostUserMemory Memory, GuestRegionMmap Added) Add(VhostMemoryRegion entry, SafeDescriptor file, bool trusted)
    {
        if (_slots.Length >= MaxSlots)
            throw new GuestMemoryException(GuestMemoryError.InvalidOperation, $"The memory table has {_slots.Length} regions; it takes no more.");
        var region = MapRegion(entry, file, trusted);
        try
        {
            return (new VhostUserMemory([.. _slots, (region, entry.userspace_addr)]), region);
        }
        catch
        {
            region.Dispose();
            throw;
        }
    }

    /// <summary>The same table without one region, which the caller releases.</summary>
    /// <exception cref="GuestMemoryException">NoMemoryRegion: there is none of exactly these addresses and this size.</exception>
    public (VhostUserMemory Memory, GuestRegionMmap Removed) Remove(VhostMemoryRegion entry)
    {
        var (address, size, user) = (entry.guest_phys_addr, entry.memory_size, entry.userspace_addr);
        var index = Array.FindIndex(_slots, slot => slot.Region.GuestAddress == address && slot.Region.Size == size && slot.UserAddress == user);
        if (index < 0)
            throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, $"There is no region of 0x{size:x} bytes at guest address 0x{address:x} and address 0x{user:x} of the front end.");
        return (new VhostUserMemory([.. _slots[..index], .. _slots[(index + 1)..]]), _slots[index].Region);
    }

    /// <summary>The guest address of a range in addresses of the front end; all of it lies in one region.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress.</exception>
    public GuestAddress Translate(ulong userAddress, ulong length, string what)
    {
        foreach (var (region, start) in _slots)
        {
            var offset = unchecked(userAddress - start);
            if (offset < region.Size && length <= region.Size - offset) return region.GuestAddress + offset;
        }

        throw new GuestMemoryException(GuestMemoryError.InvalidGuestAddress, $"No region holds the {what}: {length} bytes at address 0x{userAddress:x} of the front end.") { Address = userAddress };
    }

    /// <summary>Checks that a file of an untrusted front end keeps its length: memory behind the end of a file ends the process that touches it.</summary>
    /// <exception cref="GuestMemoryException">FileNotSealed.</exception>
    public static void CheckSealed(SafeDescriptor file, bool trusted, string what)
    {
        if (trusted || (Memfd.Seals(file) & Memfd.F_SEAL_SHRINK) != 0) return;
        throw new GuestMemoryException(GuestMemoryError.FileNotSealed,
            $"The file of the {what} is not a memfd that is sealed against shrinking; the front end could end this process with it. Have the front end seal it, or declare the front end trusted.");
    }

    private static GuestRegionMmap MapRegion(VhostMemoryRegion entry, SafeDescriptor file, bool trusted)
    {
        if (entry.memory_size == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, $"The region at guest address 0x{entry.guest_phys_addr:x} has no bytes.");
        GuestMemoryRegion.CheckFits(entry.guest_phys_addr, entry.memory_size);
        if (entry.userspace_addr > ulong.MaxValue - (entry.memory_size - 1))
            throw new GuestMemoryException(GuestMemoryError.InvalidGuestRegion, $"The region of 0x{entry.memory_size:x} bytes passes the last address of the front end: it starts at 0x{entry.userspace_addr:x}.");
        CheckSealed(file, trusted, $"region at guest address 0x{entry.guest_phys_addr:x}");
        using var duplicate = Descriptor.Duplicate(file);
        return GuestRegionMmap.FromRange(entry.guest_phys_addr, entry.memory_size, duplicate, entry.flags_padding, "vhost-user");
    }

    private void CheckUserAddresses()
    {
        var sorted = _slots.OrderBy(static slot => slot.UserAddress).ToArray();
        for (var i = 1; i < sorted.Length; i++)
        {
            if (sorted[i].UserAddress - sorted[i - 1].UserAddress >= sorted[i - 1].Region.Size) continue;
            throw new GuestMemoryException(GuestMemoryError.MemoryRegionOverlap,
                $"The regions {sorted[i - 1].Region} and {sorted[i].Region} share addresses of the front end, from 0x{sorted[i].UserAddress:x} on.");
        }
    }
}
