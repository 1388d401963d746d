using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>Guarded access, and what keeps the memory mapped.</content>
public sealed unsafe partial class MmapRegion
{
    // Single accesses to guarded memory that are under way.
    private int _touching;

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
            throw RegionDisposed(exception);
        }
    }

    /// <inheritdoc/>
    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        using var lease = Lease();
        var memory = (byte*)lease.Address + offset;
        var length = (nuint)buffer.Length;
        fixed (byte* local = buffer)
        {
            if (!TryBeginSingle(memory, length, write: false)) return (int)GuardedCopy.Read(memory, local, length, out error);
            VolatileCopy.CopyStepped(local, memory, length);
        }

        EndSingle();
        error = 0;
        return buffer.Length;
    }

    /// <inheritdoc/>
    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        using var lease = Lease();
        var memory = (byte*)lease.Address + offset;
        var length = (nuint)buffer.Length;
        fixed (byte* local = buffer)
        {
            if (!TryBeginSingle(memory, length, write: true)) return (int)GuardedCopy.Write(memory, local, length, out error);
            VolatileCopy.CopyStepped(memory, local, length);
        }

        EndSingle();
        error = 0;
        return buffer.Length;
    }

    /// <inheritdoc/>
    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = null;
        error = 0;
        try
        {
            KeepMapped();
        }
        catch (ObjectDisposedException exception)
        {
            throw RegionDisposed(exception);
        }

        return _mapping.Address + (nint)offset;
    }

    /// <inheritdoc/>
    protected override void Unpin(nint address, ulong length, object? state) => LetUnmap();

    /// <summary>
    /// Brings in the pages of guarded memory, so that touching them neither waits nor fails, and keeps the region from being released
    /// until that is over. (Somebody who takes a page away in the very next moment, or shortens the file, defeats that; nothing
    /// shorter than a signal handler helps against it.)
    /// </summary>
    private protected override nint BeginTouch(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = null;
        using var lease = Lease();
        var write = access.HasWrite();
        error = IsGuarded ? GuardedCopy.TryPopulate((byte*)lease.Address + offset, (nuint)length, write) : 0;
        if (error != 0)
        {
            throw NotAccessibleAt($"offset 0x{offset:x} of the region", offset, write ? MemoryProtection.Write : MemoryProtection.Read, error,
                new SyscallException("madvise", error, $"Bringing in the page at host address 0x{HostAddress + offset:x}"));
        }

        BeginSingle();
        return lease.Address + (nint)offset;
    }

    private protected override void EndTouch(nint address, ulong length, object? state) => EndSingle();

    /// <inheritdoc/>
    protected override string WhyNot(MemoryProtection access, int error) => _canShrink && BackingPath is not null ? $"the file behind it, {BackingPath}, may have been truncated"
        : PageSize != HostPage.Size ? "the pool of huge pages may be empty"
        : "its handler poisoned it, or the memory was unmapped";

    /// <inheritdoc/>
    protected internal override SyscallException Cause(ulong offset, MemoryProtection access, int error) =>
        new(access == MemoryProtection.Read ? "process_vm_readv" : "process_vm_writev", error, $"Access to host address 0x{HostAddress + offset:x}");

    /// <summary>
    /// The kernel copies bytes in whatever steps it likes. What a single access can carry is touched here instead, once its page is in;
    /// but never a file, which somebody may shorten in between.
    /// </summary>
    private bool TryBeginSingle(byte* memory, nuint length, bool write)
    {
        if (_canShrink || !GuardedCopy.IsSingle(memory, length) || GuardedCopy.TryPopulate(memory, length, write) != 0) return false;
        BeginSingle();
        return true;
    }

    /// <summary>
    /// A single access to guarded memory whose pages are there. It is brief, and never a wait for a page: a release waits for it, since
    /// for whoever waits it takes the access rights away.
    /// </summary>
    private void BeginSingle()
    {
        // Either the release sees this one, or this one sees the release.
        Interlocked.Increment(ref _touching);
        if (!IsDisposed) return;
        EndSingle();
        throw RegionDisposed();
    }

    private void EndSingle() => Interlocked.Decrement(ref _touching);
}
