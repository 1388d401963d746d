using System.Numerics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// Memory that others may access at the same time (vm-memory's VolatileMemory): what slices and regions are made of. The kinds are
/// <see cref="MmapRegion"/> and whatever derives from this class. A kind whose memory has an address in this process for the time of
/// an access overrides <see cref="Pin"/> and <see cref="Unpin"/>; a kind whose memory is copied by other means overrides
/// <see cref="ReadCore"/> and <see cref="WriteCore"/>. Slices, references, atomics, streams, regions and address spaces then work.
/// Offsets and sizes are bytes.
/// </summary>
public abstract unsafe partial class VolatileMemory : IDisposable
{
    // Slices of memory that has no address of its own begin at 0: they carry offsets, and are never touched.
    private readonly byte* _start;
    private IBitmap? _bitmap;
    private Lock? _tracking;

    /// <summary>Memory of a kind that is never touched directly: each access calls the members that the kind overrides.</summary>
    /// <param name="size">The bytes.</param>
    /// <param name="protection">What may be done with them.</param>
    protected VolatileMemory(ulong size, MemoryProtection protection = MemoryProtection.ReadWrite)
        : this(null, size, protection, guarded: true)
    {
        HasHostAddress = false;
    }

    private protected VolatileMemory(byte* start, ulong size, MemoryProtection protection, bool guarded, IBitmap? bitmap = null)
    {
        _start = start;
        HasHostAddress = true;
        Size = size;
        Protection = protection;
        _bitmap = bitmap;
        _state = (guarded ? Guarded : 0) | (bitmap is null ? 0 : Tracked);
    }

    /// <summary>The length in bytes (vm-memory's len); not rounded to pages.</summary>
    public ulong Size { get; }

    /// <summary>What may be done with the memory.</summary>
    public MemoryProtection Protection { get; }

    /// <summary>Whether the memory has an address in this process as long as it is there, not only for the time of an access.</summary>
    public bool HasHostAddress { get; }

    /// <summary>The size of the pages behind the memory, in bytes.</summary>
    public virtual ulong PageSize => HostPage.Size;

    /// <summary>The file behind the memory and where in it the memory starts (vm-memory's file_offset); null without a file.</summary>
    public virtual FileOffset? File => null;

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where that is not known, and <see cref="SetHugetlbfs"/> was not called.</summary>
    public bool? IsHugetlbfs { get; private protected set; }

    /// <summary>The dirty bitmap, or null where writes were never tracked. What it marks in can be replaced at any time.</summary>
    public BitmapMmapRegion? Bitmap => _bitmap as BitmapMmapRegion;

    /// <summary>Whether accesses are guarded: they may fail or wait.</summary>
    public bool IsGuarded => (State & Guarded) != 0;

    /// <summary>Whether the memory was taken away.</summary>
    public bool IsDisposed => (State & Disposed) != 0;

    /// <summary>Whether an access may have to wait for another process or a handler; true for a kind that does not say.</summary>
    public virtual bool MayWait => true;

    /// <summary>The handler that should provide missing pages and is gone: "the page-fault handler at ..."; null where there is none.</summary>
    internal virtual string? GoneHolder => null;

    /// <summary>All of the memory as a slice (vm-memory's as_volatile_slice).</summary>
    public VolatileSlice AsVolatileSlice() => new(this, _start, Size, 0);

    /// <summary>A part of the memory as a slice (vm-memory's get_slice).</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow.</exception>
    public VolatileSlice GetSlice(ulong offset, ulong count) => AsVolatileSlice().Subslice(offset, count);

    /// <summary>One value; see <see cref="VolatileSlice.GetRef"/>.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow.</exception>
    public VolatileRef<T> GetRef<T>(ulong offset)
        where T : unmanaged => AsVolatileSlice().GetRef<T>(offset);

    /// <summary>Values one behind the other; see <see cref="VolatileSlice.GetArrayRef"/>.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="count">How many values.</param>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, TooBig.</exception>
    public VolatileArrayRef<T> GetArrayRef<T>(ulong offset, ulong count)
        where T : unmanaged => AsVolatileSlice().GetArrayRef<T>(offset, count);

    /// <summary>A value for atomic operations; see <see cref="VolatileSlice.GetAtomicRef"/>.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    public AtomicRef<T> GetAtomicRef<T>(ulong offset)
        where T : unmanaged, IBinaryInteger<T> => AsVolatileSlice().GetAtomicRef<T>(offset);

    /// <summary>A value in place; see <see cref="VolatileSlice.AlignedAsRef"/>.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: the memory is guarded. RegionDisposed.</exception>
    public ReadOnlySpanLease<T> AlignedAsRef<T>(ulong offset)
        where T : unmanaged => AsVolatileSlice().AlignedAsRef<T>(offset);

    /// <summary>The same to write to; see <see cref="VolatileSlice.AlignedAsMut"/>.</summary>
    /// <exception cref="VolatileMemoryException">OutOfBounds, Overflow, Misaligned.</exception>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: the memory is guarded. RegionDisposed.</exception>
    public SpanLease<T> AlignedAsMut<T>(ulong offset)
        where T : unmanaged => AsVolatileSlice().AlignedAsMut<T>(offset);

    /// <summary>Records whether the memory lies on hugetlbfs (vm-memory's set_hugetlbfs); changes nothing else.</summary>
    public void SetHugetlbfs(bool hugetlbfs) => IsHugetlbfs = hugetlbfs;

    /// <summary>
    /// Has writes marked in a tracker from now on, in the place of the one that was there; every slice of the memory follows at once.
    /// </summary>
    /// <param name="tracker">The tracker, whose offset 0 is the memory's first byte; or null: no tracking.</param>
    /// <param name="keepDirty">Brings over what is marked in the former one and was not taken.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; LogDisposed.</exception>
    public void SetTracker(IDirtyTracker? tracker, bool keepDirty = false)
    {
        lock (LazyInitializer.EnsureInitialized(ref _tracking)) Install(LoggedTracker.Of(tracker, (Bitmap?.Installed as LoggedTracker)?.Log), keepDirty);
    }

    /// <summary>
    /// Has writes marked also in the log of a front end from now on, in the place of the former one, or in none; the tracker, whose marks are
    /// not the front end's, stays.
    /// </summary>
    /// <exception cref="GuestMemoryException">RegionDisposed; LogDisposed.</exception>
    internal void SetLog(AtomicBitmapMmap? log)
    {
        lock (LazyInitializer.EnsureInitialized(ref _tracking)) Install(LoggedTracker.Of(Bitmap?.Tracker, log), keepDirty: false);
    }

    /// <summary>A bitmap that marks in a tracker; null without one.</summary>
    private protected static BitmapMmapRegion? BitmapOver(IDirtyTracker? tracker)
    {
        if (tracker is null) return null;
        var bitmap = new BitmapMmapRegion();
        bitmap.Replace(tracker);
        return bitmap;
    }

    /// <summary>After the memory was taken away: a shared log is released with its last region. A private bitmap can still be read.</summary>
    private protected void ReleaseLog()
    {
        lock (LazyInitializer.EnsureInitialized(ref _tracking))
        {
            if (Bitmap?.Installed is AtomicBitmapMmap or LoggedTracker) Bitmap.Replace(Bitmap.Tracker is AtomicBitmapMmap ? null : Bitmap.Tracker);
        }
    }

    /// <summary>
    /// Takes the memory away: every later access fails with RegionDisposed. A kind that has something to free overrides it, calls
    /// <see cref="SetDisposed"/> first, and waits for the accesses that are under way.
    /// </summary>
    /// <param name="force">Whether what uses the memory loses it.</param>
    /// <exception cref="GuestMemoryException">RegionInUse: the memory is in use, and <paramref name="force"/> is false.</exception>
    public virtual void Release(bool force) => SetDisposed();

    /// <summary>Takes the memory away also while it is in use; see <see cref="Release"/>.</summary>
    public void Dispose()
    {
        Release(force: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>
    /// Where a byte lies in this process, to hand it on. Nothing keeps the memory there, nor a page-fault handler from coming to lie
    /// behind it; access goes through slices.
    /// </summary>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable.</exception>
    internal ulong GetHostAddress(ulong offset) => HasHostAddress ? (ulong)(_start + offset) : throw NoHostAddress();

    /// <summary>
    /// Makes bytes accessible at an address until <see cref="Unpin"/>: for system calls, for atomic operations, and for copies of a
    /// kind that does not override <see cref="ReadCore"/> and <see cref="WriteCore"/>. A kind without addresses leaves it out.
    /// </summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">How many bytes; offset and length lie in the memory.</param>
    /// <param name="access">Read or Write, or both where the caller does not know.</param>
    /// <param name="state">What <see cref="Unpin"/> needs.</param>
    /// <param name="error">The error number (<c>errno(3)</c>) where that cannot be done: nothing is to be undone then; else 0.</param>
    /// <returns>The address of the first byte; as aligned as the offset is, for offsets that are multiples of 2, 4 and 8.</returns>
    /// <exception cref="GuestMemoryException">HostAddressNotAvailable: this kind has none.</exception>
    protected virtual nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error) => throw NoHostAddress();

    /// <summary>Ends what <see cref="Pin"/> began; it does not fail.</summary>
    protected virtual void Unpin(nint address, ulong length, object? state)
    {
    }

    /// <summary>Copies bytes out; unless overridden, from where <see cref="Pin"/> puts them.</summary>
    /// <param name="offset">The first byte; the buffer's length lies in the memory.</param>
    /// <param name="buffer">Where to.</param>
    /// <param name="error">The error number (<c>errno(3)</c>) that kept the rest from being read; 0 where all came.</param>
    /// <returns>How many bytes came.</returns>
    protected virtual int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        using var pin = AccessPin.TryBegin(this, offset, (ulong)buffer.Length, MemoryProtection.Read, brief: false, out error);
        if (error != 0) return 0;
        fixed (byte* local = buffer) VolatileCopy.Copy(local, pin.Address, (nuint)buffer.Length);
        return buffer.Length;
    }

    /// <summary>Copies bytes in; see <see cref="ReadCore"/>. The caller marks what was written.</summary>
    /// <param name="offset">The first byte; the buffer's length lies in the memory.</param>
    /// <param name="buffer">Where from.</param>
    /// <param name="error">The error number that kept the rest from being written; 0 where all went.</param>
    /// <returns>How many bytes went.</returns>
    protected virtual int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        using var pin = AccessPin.TryBegin(this, offset, (ulong)buffer.Length, MemoryProtection.Write, brief: false, out error);
        if (error != 0) return 0;
        fixed (byte* local = buffer) VolatileCopy.Copy(pin.Address, local, (nuint)buffer.Length);
        return buffer.Length;
    }

    /// <summary>What keeps memory from being accessed, as the end of a sentence.</summary>
    /// <param name="access">Read or Write.</param>
    /// <param name="error">The error number of the access.</param>
    protected virtual string WhyNot(MemoryProtection access, int error) => $"the access failed with {Errno.Name(error)}";

    /// <summary>The system call behind an access that failed, or null.</summary>
    /// <param name="offset">The byte that could not be accessed.</param>
    /// <param name="access">Read or Write.</param>
    /// <param name="error">The error number of the access.</param>
    protected internal virtual SyscallException? Cause(ulong offset, MemoryProtection access, int error) => null;

    /// <summary>
    /// The error for bytes that cannot be had: PageNotAccessible; RegionDisposed; or the <see cref="Cause"/> itself, where the system call
    /// is denied or unknown and says nothing of the page.
    /// </summary>
    /// <param name="offset">The first of them.</param>
    /// <param name="access">Read or Write.</param>
    /// <param name="error">The error number of the access.</param>
    protected internal GuestMemoryException NotAccessible(ulong offset, MemoryProtection access, int error) =>
        NotAccessibleAt($"offset 0x{offset:x} of the region", offset, access, error, Cause(offset, access, error));

    /// <summary>The same for a byte that the caller knows by an address of its own.</summary>
    internal GuestMemoryException NotAccessibleAt(string place, ulong address, MemoryProtection access, int error, SyscallException? cause)
    {
        // A region that a handler serves loses its access rights before it goes.
        if (IsDisposed) return RegionDisposed();
        if (cause is not null && error is Errno.EPERM or Errno.ENOSYS or Errno.EINVAL) return cause;
        var why = Protection.Allows(access) ? WhyNot(access, error) : $"its protection is {Protection}";
        return new GuestMemoryException(GuestMemoryError.PageNotAccessible, $"The page at {place} cannot be {(access == MemoryProtection.Read ? "read" : "written")}: {why}.",
            cause) { Address = address };
    }

    /// <summary>The kind, the size, and the state, for debuggers and messages: "MmapRegion of 0x1000 bytes, ReadWrite, guarded".</summary>
    public override string ToString() => $"{GetType().Name} of 0x{Size:x} bytes, {Protection}{StateText(State)}";

    /// <summary>What is to be said of a state.</summary>
    internal static string StateText(int state) => (state & Disposed) != 0 ? ", removed"
        : $"{((state & Guarded) != 0 ? ", guarded" : "")}{((state & Tracked) != 0 ? ", tracked" : "")}";

    internal static GuestMemoryException RegionDisposed(Exception? inner = null) =>
        new(GuestMemoryError.RegionDisposed, "The region was removed; its memory is no longer mapped.", inner);

    internal static GuestMemoryException NoHostAddress() => new(GuestMemoryError.HostAddressNotAvailable,
        "The memory is guarded: an access by its host address can fail or wait (a file, huge pages, or a page-fault handler lies behind it), or it has none. Read and write it by offsets instead.");

    /// <summary>Has marks go to a tracker. Under the lock.</summary>
    private void Install(IDirtyTracker? tracker, bool keepDirty)
    {
        if (IsDisposed) throw RegionDisposed();
        if (Bitmap is not null)
        {
            Bitmap.Replace(tracker, keepDirty ? Size : 0);
        }
        else if (tracker is not null)
        {
            _bitmap = BitmapOver(tracker);
            Set(Tracked);
        }
    }
}
