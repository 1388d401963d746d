using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// The dirty log that a vhost-user front end shares: a file, mapped (vhost-user-backend's MmapLogReg). Page n of guest physical
/// memory, of 4096 bytes whatever the host's page size, is bit n % 8 of byte n / 8. The mapping stays until nobody can mark in it any
/// more: whoever replaces a log need not know who still does.
/// </summary>
/// <remarks>
/// A file that is cut short under its mapping ends the process that marks in it. Take logs of strangers only where
/// <see cref="IsSealed"/>; QEMU's always is.
/// </remarks>
public sealed unsafe class MmapLogReg
{
    /// <summary>The bytes that a bit of the log stands for.</summary>
    public const ulong PageSize = 4096;

    private readonly SafeMapping _mapping;

    private MmapLogReg(SafeMapping mapping, ulong length, bool isSealed, string path)
    {
        _mapping = mapping;
        Length = length;
        IsSealed = isSealed;
        Path = path;
    }

    /// <summary>What the file is called.</summary>
    public string Path { get; }

    /// <summary>The length in bytes; each holds 8 pages.</summary>
    public ulong Length { get; }

    /// <summary>Whether the file is a memfd that nobody can shrink any more.</summary>
    public bool IsSealed { get; }

    /// <summary>The log as words. Mappings begin and end at pages, so the word of every byte lies inside.</summary>
    internal ulong* Words => (ulong*)_mapping.Address;

    /// <summary>How long a log must be, in bytes, to reach to an address.</summary>
    public static ulong RequiredLength(GuestAddress last) => last.Value / PageSize / 8 + 1;

    /// <summary>Maps a log. The file may be closed afterwards.</summary>
    /// <param name="file">The file or memfd, open for reading and writing.</param>
    /// <param name="offset">Where the log starts, in bytes; a multiple of the host's page size.</param>
    /// <param name="length">Its length in bytes; 1 or more.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: the numbers are too large, or the file is too short; UnalignedOffset, ZeroSize.</exception>
    public static MmapLogReg FromFile(SafeHandle file, ulong offset, ulong length)
    {
        ArgumentNullException.ThrowIfNull(file);
        if (offset > long.MaxValue || length > long.MaxValue)
            throw new GuestMemoryException(GuestMemoryError.InvalidLog, $"A log of {length} bytes at offset {offset} is larger than any file.");
        var what = $"Mapping a dirty log of {length} bytes at offset {offset}";
        using var lease = new DescriptorLease(file);
        var mapping = Mman.TryMap((nuint)length, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, lease.Number, (long)offset, out var error)
            ?? throw new SyscallException("mmap", error, what,
                error != Errno.EINVAL ? GuestMemoryError.SyscallFailed : length == 0 ? GuestMemoryError.ZeroSize : GuestMemoryError.UnalignedOffset);
        var size = FileStatus.Get(file).stx_size;
        if (offset <= size && length <= size - offset) return new MmapLogReg(mapping, length, (Memfd.Seals(file) & Memfd.F_SEAL_SHRINK) != 0, Descriptor.PathOf(lease.Number));
        mapping.Dispose();
        throw new GuestMemoryException(GuestMemoryError.InvalidLog, $"The log's file is {size} bytes long, shorter than offset {offset} plus {length} bytes.");
    }
}
