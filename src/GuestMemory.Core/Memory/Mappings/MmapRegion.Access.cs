using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>Guarded access, and what keeps the memory mapped.</content>
public sealed unsafe partial class MmapRegion
{
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
            if (!TryBeginSingle(offset, length, write: false)) return (int)GuardedCopy.Read(memory, local, length, out error);
            VolatileCopy.CopyStepped(local, memory, length);
        }

        EndTouch();
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
            if (!TryBeginSingle(offset, length, write: true)) return (int)GuardedCopy.Write(memory, local, length, out error);
            VolatileCopy.CopyStepped(memory, local, length);
        }

        EndTouch();
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

    /// <inheritdoc/>
    protected override string WhyNot(MemoryProtection access, int error) => _canShrink && BackingPath is not null ? $"the file behind it, {BackingPath}, may have been truncated"
        : PageSize != HostPage.Size ? "the pool of huge pages may be empty"
        : "its handler poisoned it, or the memory was unmapped";

    /// <inheritdoc/>
    protected internal override SyscallException Cause(ulong offset, MemoryProtection access, int error) =>
        GuardedCopy.Failure(access == MemoryProtection.Read ? "process_vm_readv" : "process_vm_writev", error, $"Access to host address 0x{HostAddress + offset:x}");

    /// <summary>
    /// The kernel copies bytes in whatever steps it likes. What a single access can carry is touched here instead, once its page is in;
    /// but never a file, which another process may shorten in between.
    /// </summary>
    private bool TryBeginSingle(ulong offset, nuint length, bool write) => CanTouch && GuardedCopy.IsSingle(HostAddress + offset, length) && TryBeginTouch(offset, length, write) == 0;
}
