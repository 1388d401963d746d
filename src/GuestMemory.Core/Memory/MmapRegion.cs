using System.Diagnostics;
using GuestMemory.Core.Interop;

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
    private readonly bool _alwaysGuarded;
    private volatile bool _guarded;
    private bool _disposed;

    internal MmapRegion(SafeMapping mapping, ulong size, ulong pageSize, MemoryProtection protection, MapFlags flags, string? backingPath, ulong fileOffset,
        bool hasFile, bool? isHugetlbfs, bool owned, bool guarded, AtomicBitmap? bitmap)
    {
        _mapping = mapping;
        _alwaysGuarded = guarded;
        _guarded = guarded;
        Size = size;
        PageSize = pageSize;
        Protection = protection;
        Flags = flags;
        BackingPath = backingPath;
        FileOffset = hasFile ? fileOffset : null;
        IsHugetlbfs = isHugetlbfs;
        IsOwned = owned;
        Bitmap = bitmap;
        HostAddress = (ulong)mapping.Address;
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

    /// <summary>Where in the file it starts, in bytes; null without a file.</summary>
    public ulong? FileOffset { get; }

    /// <summary>Whether it lies on huge pages of hugetlbfs; null where nobody has said.</summary>
    public bool? IsHugetlbfs { get; }

    /// <summary>Whether it is unmapped on release; false around a raw pointer.</summary>
    public bool IsOwned { get; }

    /// <summary>The dirty bitmap, or null without tracking.</summary>
    public AtomicBitmap? Bitmap { get; }

    /// <summary>Whether accesses are guarded: they may fail or wait.</summary>
    public bool IsGuarded => _guarded;

    /// <summary>Who should provide missing pages and is gone: "the page-fault handler at ..."; null where nobody is, or nobody needs to.</summary>
    internal string? GoneHolder
    {
        get
        {
            lock (_lock) return _holders.Count > 0 && !_holders.Exists(holder => holder.IsLive) ? _holders[0].Description : null;
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
    internal ulong TryRead(ulong offset, Span<byte> destination, out int error) => Transfer(offset, destination, write: false, out error);

    /// <summary>Writes bytes at an offset, then marks them dirty; the counterpart of <see cref="TryRead"/>.</summary>
    internal ulong TryWrite(ulong offset, ReadOnlySpan<byte> source, out int error)
    {
        var writable = System.Runtime.InteropServices.MemoryMarshal.CreateSpan(ref System.Runtime.InteropServices.MemoryMarshal.GetReference(source), source.Length);
        return Transfer(offset, writable, write: true, out error);
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
                throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description}. Stop that first, or use -Force to take the memory away from it.");
            _disposed = true;
            holders = [.. _holders];
            _holders.Clear();
        }

        foreach (var holder in holders) holder.Release(this);
        _mapping.Dispose();
    }

    /// <summary>Registers a holder; from now on every access is guarded.</summary>
    internal void Hold(IRegionHolder holder)
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            if (_holders.Find(other => other.IsLive) is { } live)
                throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description} already.");
            _guarded = true;
            _holders.Add(holder);
        }
    }

    /// <summary>Takes a holder's claim back, where what it wanted did not work out.</summary>
    internal void Unhold(IRegionHolder holder)
    {
        lock (_lock)
        {
            _holders.Remove(holder);
            _guarded = _alwaysGuarded || _holders.Count > 0;
        }
    }

    /// <summary>Keeps the memory mapped, also where the region is released, until <see cref="LetUnmap"/>.</summary>
    internal void KeepMapped()
    {
        var taken = false;
        _mapping.DangerousAddRef(ref taken);
    }

    internal void LetUnmap() => _mapping.DangerousRelease();

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

    private ulong Transfer(ulong offset, Span<byte> buffer, bool write, out int error)
    {
        error = 0;
        if (offset >= Size || buffer.IsEmpty) return 0;
        var length = (nuint)Math.Min((ulong)buffer.Length, Size - offset);
        using var lease = Lease();
        var address = lease.Address + (nint)offset;
        nuint done;
        fixed (byte* local = buffer)
        {
            if (!_guarded)
            {
                if (write) Mman.Copy((void*)address, local, length);
                else Mman.Copy(local, (void*)address, length);
                done = length;
            }
            else
            {
                done = Guarded(address, local, length, write, out error);
            }
        }

        if (write) Bitmap?.MarkDirty(offset, done);
        return done;
    }

    private static nuint Guarded(nint address, byte* local, nuint length, bool write, out int error)
    {
        nuint done = 0;
        error = 0;
        while (done < length)
        {
            var count = write
                ? ProcessVm.TryWrite(Environment.ProcessId, local + done, address + (nint)done, length - done)
                : ProcessVm.TryRead(Environment.ProcessId, local + done, address + (nint)done, length - done);
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

    private void ThrowIfDisposed()
    {
        if (_disposed) throw Disposed(null);
    }

    private static GuestMemoryException Disposed(Exception? inner) =>
        new(GuestMemoryError.RegionDisposed, "The region was removed; its memory is no longer mapped.", inner);

    /// <summary>Holds a mapping open; its address is good until disposal.</summary>
    internal readonly ref struct MappingLease
    {
        private readonly SafeMapping _mapping;

        public MappingLease(SafeMapping mapping)
        {
            var taken = false;
            mapping.DangerousAddRef(ref taken);
            Debug.Assert(taken);
            _mapping = mapping;
        }

        public nint Address => _mapping.Address;

        public nuint Length => _mapping.Length;

        public void Dispose() => _mapping.DangerousRelease();
    }
}
