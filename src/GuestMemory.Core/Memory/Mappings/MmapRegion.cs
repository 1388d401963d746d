using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// A range of mapped memory (vm-memory's MmapRegion, unix build). It is accessed in one of two ways. <em>Direct</em>: memory on
/// which no access can fail or wait is copied straight. <em>Guarded</em>: files, huge pages, restricted protections, and all that
/// a userfaultfd watches are copied by the kernel (<c>process_vm_readv(2)</c>), so that a page that cannot be had is an error, not
/// a signal that ends the process, and a page that takes its time never stops a garbage collection.
/// </summary>
public sealed unsafe partial class MmapRegion : VolatileMemory
{
    private readonly SafeMapping _mapping;
    private readonly Lock _lock = new();
    private readonly RegionHolders _holders = new();
    private readonly bool _alwaysGuarded;
    private readonly bool _canShrink;

    internal MmapRegion(SafeMapping mapping, ulong size, ulong pageSize, MemoryProtection protection, MapFlags flags, string? backingPath, FileOffset? file,
        bool? isHugetlbfs, bool owned, bool guarded, bool canShrink, IDirtyTracker? tracker)
        : base((byte*)mapping.Address, size, protection, guarded, BitmapOver(tracker))
    {
        _mapping = mapping;
        _alwaysGuarded = guarded;
        _canShrink = canShrink;
        PageSize = pageSize;
        Flags = flags;
        BackingPath = backingPath;
        File = file;
        IsHugetlbfs = isHugetlbfs;
        IsOwned = owned;
        HostAddress = (ulong)mapping.Address;
    }

    /// <summary>The size of the pages that back the mapping, in bytes.</summary>
    public override ulong PageSize { get; }

    /// <summary>Where the mapping starts in this process. For display and for handing on; access goes through this class.</summary>
    public ulong HostAddress { get; }

    /// <summary>The flags it was mapped with.</summary>
    public MapFlags Flags { get; }

    /// <summary>The file behind it, or null for anonymous memory.</summary>
    public string? BackingPath { get; }

    /// <summary>The file and where in it the mapping starts (vm-memory's file_offset); null without a file. The handle is the region's own.</summary>
    public override FileOffset? File { get; }

    /// <summary>Whether it is unmapped on release; false around a raw pointer.</summary>
    public bool IsOwned { get; }

    /// <summary>
    /// Whether an access may have to wait for a handler that provides its pages; a file has its pages itself. Unknown for memory that
    /// the caller mapped.
    /// </summary>
    public override bool MayWait
    {
        get
        {
            if (!IsGuarded) return false;
            lock (_lock) return !IsOwned || _holders.HaveProvider;
        }
    }

    /// <inheritdoc/>
    internal override string? GoneHolder
    {
        get
        {
            lock (_lock) return _holders.GoneProvider;
        }
    }

    /// <summary>
    /// Gives the pages of a range back to the host; they read as zero (anonymous memory) or as the file's content afterwards.
    /// Offset and length in bytes, multiples of <see cref="PageSize"/>. On memory that a page-fault handler serves this waits
    /// until the handler has taken note. The range is marked as written: its content has changed.
    /// </summary>
    /// <exception cref="SyscallException">The kernel refused (unaligned range).</exception>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: the range leaves the region. RegionDisposed.</exception>
    public void Discard(ulong offset, ulong length)
    {
        if (offset > Size || length > Size - offset)
            throw new GuestMemoryException(GuestMemoryError.InvalidBackendAddress, $"The range 0x{offset:x} + 0x{length:x} leaves the region of 0x{Size:x} bytes.");
        if (length == 0) return;
        var advice = (Flags & MapFlags.Shared) != 0 ? Mman.MADV_REMOVE : Mman.MADV_DONTNEED;
        var error = ChangeContent(offset, length, address => Mman.TryAdvise(address, (nuint)length, advice));
        if (error != 0) throw new SyscallException("madvise", error, $"Discarding 0x{length:x} bytes at offset 0x{offset:x}");
    }

    /// <summary>
    /// Unmaps the memory, as soon as no access is under way any more. With <paramref name="force"/> a handler that is still alive
    /// loses it; who waits for a page of it gets an error.
    /// </summary>
    /// <exception cref="GuestMemoryException">RegionInUse: a live handler serves it, and <paramref name="force"/> is false.</exception>
    public override void Release(bool force)
    {
        IRegionHolder[] holders;
        lock (_lock)
        {
            if (IsDisposed) return;
            if (!force && _holders.Live is { } live)
                throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description}. Stop that first, or force the removal, which takes the memory away from it.");
            SetEarly(Disposed);
            holders = _holders.TakeAll();
        }

        Set(Disposed);
        // They touch pages that are there: it is a matter of microseconds.
        SpinWait.SpinUntil(() => Volatile.Read(ref _touching) == 0);
        foreach (var holder in holders) holder.Release(this);
        _mapping.Dispose();
        File?.File.Dispose();
        ReleaseLog();
    }

    /// <summary>
    /// Whether two mappings show the same bytes of one file (vm-memory's fds_overlap). Files are the same where device and inode are;
    /// upstream compares the numbers of the descriptors and so misses duplicates.
    /// </summary>
    public bool FdsOverlap(MmapRegion other)
    {
        ArgumentNullException.ThrowIfNull(other);
        if (File is not { } mine || other.File is not { } theirs || mine.Identity != theirs.Identity) return false;
        return mine.Start < theirs.Start ? theirs.Start - mine.Start < Size : mine.Start - theirs.Start < other.Size;
    }
}
