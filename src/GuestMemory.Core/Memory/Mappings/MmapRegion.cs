using System.Diagnostics;
using System.Runtime.CompilerServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// A range of mapped memory (vm-memory's MmapRegion, unix build). It is accessed in one of two ways. <em>Direct</em>: memory on
/// which no access can fail or wait is copied straight. <em>Guarded</em>: files, huge pages, restricted protections, and all that
/// a userfaultfd watches are copied by the kernel (<c>process_vm_readv(2)</c>), so that a page that cannot be had is an error, not
/// a signal that ends the process, and a page that takes its time never stops a garbage collection.
/// </summary>
public sealed unsafe class MmapRegion : IDisposable
{
    private readonly SafeMapping _mapping;
    private readonly Lock _lock = new();
    private readonly List<IRegionHolder> _holders = [];
    private readonly AccessGate _gate;
    private readonly bool _alwaysGuarded;
    private readonly bool _canShrink;
    private bool _disposed;

    // Single accesses to guarded memory that are under way.
    private int _touching;

    internal MmapRegion(SafeMapping mapping, ulong size, ulong pageSize, MemoryProtection protection, MapFlags flags, string? backingPath, FileOffset? file,
        bool? isHugetlbfs, bool owned, bool guarded, bool canShrink, IDirtyTracker? tracker)
    {
        _mapping = mapping;
        _gate = new AccessGate(this);
        _alwaysGuarded = guarded;
        _canShrink = canShrink;
        Size = size;
        PageSize = pageSize;
        Protection = protection;
        Flags = flags;
        BackingPath = backingPath;
        File = file;
        IsHugetlbfs = isHugetlbfs;
        IsOwned = owned;
        HostAddress = (ulong)mapping.Address;
        if (guarded) _gate.Set(AccessGate.Guarded);
        if (tracker is not null) SetTracker(tracker);
    }

    /// <summary>The length in bytes, as asked for; not rounded to pages.</summary>
    public ulong Size { get; }

    /// <summary>The size of the pages that back the mapping, in bytes.</summary>
    public ulong PageSize { get; }

    /// <summary>Where the mapping starts in this process. For display and for handing on; access goes through this class.</summary>
    public ulong HostAddress { get; }

    /// <summary>The protection it was mapped with.</summary>
    public MemoryProtection Protection { get; }

    /// <summary>The flags it was mapped with.</summary>
    public MapFlags Flags { get; }

    /// <summary>The file behind it, or null for anonymous memory.</summary>
    public string? BackingPath { get; }

    /// <summary>The file and where in it the mapping starts (vm-memory's file_offset); null without a file. The handle is the region's own.</summary>
    public FileOffset? File { get; }

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where nobody has said.</summary>
    public bool? IsHugetlbfs { get; }

    /// <summary>Whether it is unmapped on release; false around a raw pointer.</summary>
    public bool IsOwned { get; }

    /// <summary>The dirty bitmap, or null where writes were never tracked. What it marks in can be replaced at any time.</summary>
    public BitmapMmapRegion? Bitmap => (BitmapMmapRegion?)_gate.Bitmap;

    /// <summary>Whether accesses are guarded: they may fail or wait.</summary>
    public bool IsGuarded => (_gate.State & AccessGate.Guarded) != 0;

    /// <summary>
    /// Whether an access may have to wait for somebody who provides its pages; a file has its pages itself. Of memory that somebody else
    /// mapped nobody knows.
    /// </summary>
    internal bool MayWait
    {
        get
        {
            if (!IsGuarded) return false;
            lock (_lock) return !IsOwned || HasProvider();
        }
    }

    /// <summary>Who should provide missing pages and is gone: "the page-fault handler at ..."; null where nobody is, or nobody needs to.</summary>
    internal string? GoneHolder
    {
        get
        {
            lock (_lock) return LiveProvider() is null ? _holders.Find(static holder => holder.ProvidesPages)?.Description : null;
        }
    }

    /// <summary>Whether the region was released.</summary>
    public bool IsDisposed
    {
        get
        {
            lock (_lock) return _disposed;
        }
    }

    /// <summary>
    /// Reads bytes from an offset. Returns how many came: fewer than asked only where the region ends or a page cannot be had;
    /// then <paramref name="error"/> is not 0. An offset past the end gives 0 bytes.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int TryRead(ulong offset, Span<byte> destination, out int error)
    {
        error = 0;
        if (offset >= Size) return 0;
        fixed (byte* local = destination)
            return (int)_gate.Read(local, (byte*)(HostAddress + offset), (nuint)Math.Min((ulong)destination.Length, Size - offset), out error);
    }

    /// <summary>Writes bytes at an offset, then marks them dirty; the counterpart of <see cref="TryRead"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int TryWrite(ulong offset, ReadOnlySpan<byte> source, out int error)
    {
        error = 0;
        if (offset >= Size) return 0;
        fixed (byte* local = source)
            return (int)_gate.Write((byte*)(HostAddress + offset), local, (nuint)Math.Min((ulong)source.Length, Size - offset), offset, out error);
    }

    /// <summary>
    /// Gives the pages of a range back to the host; they read as zero (anonymous memory) or as the file's content afterwards.
    /// Offset and length in bytes, multiples of <see cref="PageSize"/>. On memory that a page-fault handler serves this waits
    /// until the handler has taken note.
    /// </summary>
    /// <exception cref="SyscallException">The kernel refused (unaligned range).</exception>
    /// <exception cref="GuestMemoryException">InvalidBackendAddress: the range leaves the region.</exception>
    public void Discard(ulong offset, ulong length)
    {
        if (offset > Size || length > Size - offset)
            throw new GuestMemoryException(GuestMemoryError.InvalidBackendAddress, $"The range 0x{offset:x} + 0x{length:x} leaves the region of 0x{Size:x} bytes.");
        if (length == 0) return;
        using var lease = Lease();
        var advice = (Flags & MapFlags.Shared) != 0 ? Mman.MADV_REMOVE : Mman.MADV_DONTNEED;
        var error = Mman.TryAdvise(lease.Address + (nint)offset, (nuint)length, advice);
        if (error != 0) throw new SyscallException("madvise", error, $"Discarding 0x{length:x} bytes at offset 0x{offset:x}");
    }

    /// <summary>Unmaps the memory, also while a handler serves it; see <see cref="Release"/>.</summary>
    public void Dispose() => Release(force: true);

    /// <summary>
    /// Unmaps the memory, as soon as no access is under way any more. With <paramref name="force"/> a handler that is still alive
    /// loses it; who waits for a page of it gets an error.
    /// </summary>
    /// <exception cref="GuestMemoryException">RegionInUse: a live handler serves it, and <paramref name="force"/> is false.</exception>
    public void Release(bool force)
    {
        IRegionHolder[] holders;
        lock (_lock)
        {
            if (_disposed) return;
            if (!force && _holders.Find(holder => holder.IsLive) is { } live)
                throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description}. Stop that first, or force the removal, which takes the memory away from it.");
            _disposed = true;
            // A VM can let go only when none of its vCPUs waits for a page any more.
            holders = [.. _holders.OrderByDescending(static holder => holder.ProvidesPages)];
            _holders.Clear();
        }

        _gate.Set(AccessGate.Disposed);
        // Of a page that is there: it is a matter of nanoseconds.
        SpinWait.SpinUntil(() => Volatile.Read(ref _touching) == 0);
        foreach (var holder in holders) holder.Release(this);
        _mapping.Dispose();
        File?.File.Dispose();
    }

    /// <summary>All of the memory as a slice (vm-memory's as_volatile_slice).</summary>
    public VolatileSlice AsVolatileSlice() => new(_gate, (byte*)HostAddress, Size, 0);

    /// <summary>A part of the memory as a slice (vm-memory's get_slice of a mapping), in bytes.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow.</exception>
    public VolatileSlice GetSlice(ulong offset, ulong count) => AsVolatileSlice().Subslice(offset, count);

    /// <summary>
    /// Has writes marked in a tracker from now on, in the place of the one that was there; every slice of the memory follows at once.
    /// </summary>
    /// <param name="tracker">The tracker, whose offset 0 is the region's first byte; or null: no tracking.</param>
    /// <param name="keepDirty">Brings over what is marked in the former one and was not taken.</param>
    public void SetTracker(IDirtyTracker? tracker, bool keepDirty = false)
    {
        lock (_lock)
        {
            if (Bitmap is null)
            {
                if (tracker is null) return;
                var bitmap = new BitmapMmapRegion();
                bitmap.Replace(tracker);
                _gate.Track(bitmap);
            }
            else
            {
                Bitmap.Replace(tracker, keepDirty ? Size : 0);
            }
        }
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

    /// <summary>Registers a holder. While one provides pages every access is guarded, and there is no second such one.</summary>
    internal void Hold(IRegionHolder holder)
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            if (holder.ProvidesPages)
            {
                if (LiveProvider() is { } live) throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description} already.");
                _gate.Set(AccessGate.Guarded);
            }

            _holders.Add(holder);
        }
    }

    /// <summary>Takes a holder's claim back, where what it wanted did not work out.</summary>
    internal void Unhold(IRegionHolder holder)
    {
        lock (_lock)
        {
            _holders.Remove(holder);
            if (!_alwaysGuarded && !HasProvider()) _gate.Clear(AccessGate.Guarded);
        }
    }

    /// <summary>Keeps the memory mapped, also where the region is released, until <see cref="LetUnmap"/>.</summary>
    internal void KeepMapped()
    {
        var taken = false;
        _mapping.DangerousAddRef(ref taken);
    }

    internal void LetUnmap() => _mapping.DangerousRelease();

    private bool HasProvider() => _holders.Exists(static holder => holder.ProvidesPages);

    private IRegionHolder? LiveProvider() => _holders.Find(static holder => holder.ProvidesPages && holder.IsLive);

    /// <summary>Keeps the mapping alive for several accesses or calls.</summary>
    internal MappingLease Lease()
    {
        try
        {
            return new MappingLease(_mapping);
        }
        catch (ObjectDisposedException exception)
        {
            throw Disposed(exception);
        }
    }

    /// <summary>Has the kernel copy out of guarded memory: what cannot be read is an error number, and waiting stops no collection.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal nuint ReadGuarded(byte* memory, byte* local, nuint length, out int error)
    {
        using var lease = Lease();
        return Copy(memory, local, length, write: false, out error);
    }

    /// <summary>Has the kernel copy into guarded memory; see <see cref="ReadGuarded"/>.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal nuint WriteGuarded(byte* memory, byte* local, nuint length, out int error)
    {
        using var lease = Lease();
        return Copy(memory, local, length, write: true, out error);
    }

    /// <summary>
    /// Brings in the pages of guarded memory, so that touching them neither waits nor fails, and keeps the region from being released
    /// until that is over. (Somebody who takes a page away in the very next moment, or shortens the file, defeats that; nothing
    /// shorter than a signal handler helps against it.)
    /// </summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal TouchLease Touch(byte* memory, nuint length, bool write)
    {
        using (Lease())
        {
            var error = IsGuarded ? TryPopulate(memory, length, write) : 0;
            if (error != 0) throw NotAccessible((ulong)memory - HostAddress, write, "madvise", error);
        }

        return new TouchLease(this);
    }

    /// <summary>The error for bytes of the region that cannot be had.</summary>
    internal GuestMemoryException NotAccessible(ulong offset, bool write, string function, int error)
    {
        // A region that a handler serves loses its access rights before it goes.
        if ((_gate.State & AccessGate.Disposed) != 0) return Disposed();
        var access = write ? MemoryProtection.Write : MemoryProtection.Read;
        return new GuestMemoryException(GuestMemoryError.PageNotAccessible, $"The page at offset 0x{offset:x} of the region cannot be {(write ? "written" : "read")}: {WhyNot(access)}.",
            new SyscallException(function, error, $"Access to host address 0x{HostAddress + offset:x}")) { Address = offset };
    }

    /// <summary>What most likely keeps a page from being accessed, as the end of a sentence.</summary>
    internal string WhyNot(MemoryProtection access) => !Protection.Allows(access) ? $"its protection is {Protection}"
        : _canShrink && BackingPath is not null ? $"the file behind it, {BackingPath}, may have been truncated"
        : PageSize != HostPage.Size ? "the pool of huge pages may be empty"
        : "its handler poisoned it, or the memory was unmapped";

    private nuint Copy(byte* memory, byte* local, nuint length, bool write, out int error)
    {
        // The kernel copies bytes in whatever steps it likes. What a single access can carry is touched here instead, once its page
        // is in; but never a file, which somebody may shorten in between.
        if (IsSingle(memory, length) && !_canShrink && TryPopulate(memory, length, write) == 0)
        {
            using var touch = new TouchLease(this);
            if (write) VolatileCopy.CopyStepped(memory, local, length);
            else VolatileCopy.CopyStepped(local, memory, length);
            error = 0;
            return length;
        }

        nuint done = 0;
        error = 0;
        while (done < length)
        {
            var count = write
                ? ProcessVm.TryWrite(Environment.ProcessId, local + done, (nint)memory + (nint)done, length - done)
                : ProcessVm.TryRead(Environment.ProcessId, local + done, (nint)memory + (nint)done, length - done);
            if (count > 0)
            {
                done += (nuint)count;
                continue;
            }

            if (count == -Errno.EINTR) continue;
            error = (int)-count;
            break;
        }

        return done;
    }

    private static bool IsSingle(byte* memory, nuint length) => length is 1 or 2 or 4 or 8 && ((nuint)memory & (length - 1)) == 0;

    private static int TryPopulate(byte* memory, nuint length, bool write)
    {
        var first = (nuint)memory & ~((nuint)HostPage.Size - 1);
        var end = ((nuint)memory + length + ((nuint)HostPage.Size - 1)) & ~((nuint)HostPage.Size - 1);
        return Mman.TryAdvise((nint)first, end - first, write ? Mman.MADV_POPULATE_WRITE : Mman.MADV_POPULATE_READ);
    }

    private void ThrowIfDisposed()
    {
        if (_disposed) throw Disposed();
    }

    internal static GuestMemoryException Disposed(Exception? inner = null) =>
        new(GuestMemoryError.RegionDisposed, "The region was removed; its memory is no longer mapped.", inner);

    internal static GuestMemoryException NoHostAddress() => new(GuestMemoryError.HostAddressNotAvailable,
        "The memory is guarded: an access by its host address can fail or wait (a file, huge pages, or a page-fault handler lies behind it). Read and write it by offsets instead.");

    /// <summary>
    /// A single access to guarded memory whose pages are there. It is brief, and never a wait for a page: a release waits for it, since
    /// for whoever waits it takes the access rights away.
    /// </summary>
    internal readonly ref struct TouchLease
    {
        private readonly MmapRegion? _region;

        public TouchLease(MmapRegion region)
        {
            // Either the release sees this one, or this one sees the release.
            Interlocked.Increment(ref region._touching);
            _region = region;
            if ((region._gate.State & AccessGate.Disposed) == 0) return;
            Dispose();
            throw Disposed();
        }

        public void Dispose()
        {
            if (_region is not null) Interlocked.Decrement(ref _region._touching);
        }
    }

    /// <summary>Holds a mapping open; its address is good until disposal.</summary>
    internal readonly ref struct MappingLease
    {
        private readonly SafeMapping? _mapping;

        public MappingLease(SafeMapping mapping)
        {
            var taken = false;
            mapping.DangerousAddRef(ref taken);
            Debug.Assert(taken);
            _mapping = mapping;
        }

        public nint Address => _mapping!.Address;

        public nuint Length => _mapping!.Length;

        public void Dispose() => _mapping?.DangerousRelease();
    }
}
