using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// The dirty log that a vhost-user front end shares: a file, mapped (vhost-user-backend's MmapLogReg). Page n of guest physical
/// memory, of 4096 bytes whatever the host's page size, is bit n % 8 of byte n / 8. Dispose it as soon as the regions that mark in it
/// have it: it is released, its mapping and its memfd, when it is disposed and the last of these regions has another tracker.
/// </summary>
/// <remarks>
/// <para>A thread that marks in the log at the moment of its release does no harm: the addresses stay reserved until the garbage
/// collector finds that no thread has them, and the thread marks again in the new tracker. A log that is never disposed is released
/// by the garbage collector.</para>
/// <para>A file that is cut short under its mapping ends the process that marks in it. Accept a log from an untrusted front end only if
/// <see cref="IsSealed"/>; QEMU's always is.</para>
/// </remarks>
public sealed unsafe class MmapLogReg : IDisposable
{
    /// <summary>The bytes that a bit of the log stands for.</summary>
    public const ulong PageSize = 4096;

    private readonly Lock _lock = new();
    private readonly SafeMapping _mapping;
    private readonly SafeDescriptor? _memfd;
    private int _references;
    private bool _disposed;

    private MmapLogReg(SafeMapping mapping, ulong length, bool isSealed, string path, SafeDescriptor? memfd)
    {
        _mapping = mapping;
        _memfd = memfd;
        Length = length;
        IsSealed = isSealed;
        Path = path;
    }

    /// <summary>The path of the file; for a memfd that was made here the path by which other processes open it until the log is released.</summary>
    public string Path { get; }

    /// <summary>The length in bytes; a byte holds 8 pages.</summary>
    public ulong Length { get; }

    /// <summary>Whether the file is a memfd that is sealed against shrinking.</summary>
    public bool IsSealed { get; }

    /// <summary>The file and its length, for debuggers and messages.</summary>
    public override string ToString() => $"log {Path}, 0x{Length:x} bytes{(IsSealed ? ", sealed" : "")}";

    /// <summary>The log as words. Mappings begin and end at pages, so the word of every byte lies inside.</summary>
    internal ulong* Words => (ulong*)_mapping.Address;

    /// <summary>The length in bytes that a log must have to reach to an address.</summary>
    public static ulong RequiredLength(GuestAddress last) => last.Value / PageSize / 8 + 1;

    /// <summary>Maps a log. The file may be closed afterwards.</summary>
    /// <param name="file">The file or memfd, open for reading and writing.</param>
    /// <param name="offset">Where the log starts, in bytes; a multiple of the host's page size.</param>
    /// <param name="length">Its length in bytes; 1 or more.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: the numbers are too large, or the file is too short; UnalignedOffset, ZeroSize.</exception>
    public static MmapLogReg FromFile(SafeHandle file, ulong offset, ulong length)
    {
        ArgumentNullException.ThrowIfNull(file);
        return Map(file, offset, length, path: null);
    }

    /// <summary>Maps the log in a file, or in another process's memfd (/proc/PID/fd/N).</summary>
    /// <param name="path">The file; not through a symbolic link at its end, which another user may have put there.</param>
    /// <param name="offset">Where the log starts, in bytes; a multiple of the host's page size.</param>
    /// <param name="length">Its length in bytes; null: to the end of the file.</param>
    /// <param name="required">The least length in bytes; see <see cref="RequiredLength"/>.</param>
    /// <param name="create">Makes the file, of the required length, where it does not exist.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: too short, or too large; UnalignedOffset, ZeroSize; NotAFile.</exception>
    /// <exception cref="IOException">The file cannot be opened or made.</exception>
    public static MmapLogReg FromPath(string path, ulong offset = 0, ulong? length = null, ulong required = 1, bool create = false)
    {
        CheckNumbers(offset, length ?? required);
        if (length < required) throw Invalid($"A log of {length} bytes is too short: {required} bytes are needed, one for every {8 * PageSize / 1024} KiB up to the memory's last address.");
        var make = create && !System.IO.Path.Exists(path);
        using var file = make ? Make(path, offset + (length ?? required)) : Open(path, FileAccess.ReadWrite);
        try
        {
            var there = CheckLength(file, path, offset, length ?? required, create ? $" Lengthen it with 'truncate -s {offset + (length ?? required)}', or name a file that does not exist yet." : "");
            return Map(file, offset, length ?? there, path);
        }
        catch
        {
            if (make) System.IO.File.Delete(path);
            throw;
        }
    }

    /// <summary>
    /// Makes a log in a memfd that is sealed against every change of its length. <see cref="Path"/> is how other processes of the
    /// same user open it, until the log is released.
    /// </summary>
    /// <param name="length">Its length in bytes; 1 or more.</param>
    /// <exception cref="GuestMemoryException">ZeroSize, InvalidLog, OutOfMemory.</exception>
    public static MmapLogReg FromMemfd(ulong length)
    {
        CheckNumbers(0, length);
        var memfd = RetryAfterCollection(() => Memfd.CreateSealed("dirty_log", (long)length, 0));
        try
        {
            return Map(memfd, 0, length, $"/proc/{Environment.ProcessId}/fd/{memfd.Number}", memfd);
        }
        catch
        {
            memfd.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Takes the marks of all of the log, as a front end does: every mark is either in the result or still in the log. The result
    /// begins at guest address 0.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidLog: larger than any memory's. LogDisposed.</exception>
    public DirtyBitmap GetAndReset()
    {
        var size = SizeOf(Length);
        var all = new AtomicBitmapMmap(new GuestAddress(0), size, this);
        return new DirtyBitmap(0, size, all, all.GetAndReset(), $"log {Path}");
    }

    /// <summary>Releases the log, at once or when the last region that marks in it has another tracker.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            if (_references == 0) Release();
        }
    }

    /// <summary>Keeps the log from being released until <see cref="ReleaseReference"/>; false where it has been.</summary>
    internal bool TryAddReference()
    {
        lock (_lock)
        {
            if (_mapping.IsClosed) return false;
            _references++;
            return true;
        }
    }

    /// <summary>As <see cref="TryAddReference"/>, but throws.</summary>
    /// <exception cref="GuestMemoryException">LogDisposed.</exception>
    internal void AddReference()
    {
        if (!TryAddReference())
            throw new GuestMemoryException(GuestMemoryError.LogDisposed, $"The dirty log {Path} was disposed; its memory is no longer mapped.");
    }

    internal void ReleaseReference()
    {
        lock (_lock)
        {
            if (--_references == 0 && _disposed) Release();
        }
    }

    /// <summary>The bytes of memory that a log of so many bytes covers.</summary>
    internal static ulong SizeOf(ulong length) => length <= int.MaxValue
        ? length * 8 * PageSize
        : throw Invalid($"A log of {length} bytes is larger than that of any memory; the file may be a memory image.");

    /// <summary>Opens the file of a log; it must exist and be a regular file or a memfd.</summary>
    internal static SafeFileHandle Open(string path, FileAccess access)
    {
        var straight = access != FileAccess.Read && !IsDescriptor(path);
        if (straight && new FileInfo(path).LinkTarget is not null) throw Link(path);
        // Opening a pipe or a device may block, or have an effect.
        if (FileStatus.TryGet(path, out var target, follow: true) == 0 && (target.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFREG)
        {
            throw new GuestMemoryException(GuestMemoryError.NotAFile,
                $"{path} is {((target.stx_mode & FileStatus.S_IFMT) == FileStatus.S_IFDIR ? "a directory" : "not a regular file")}; a dirty log is a file or a memfd.");
        }

        var file = System.IO.File.OpenHandle(path, FileMode.Open, access, FileShare.ReadWrite | FileShare.Delete);
        if (!straight || IsItself(file, path)) return file;
        file.Dispose();
        throw Link(path);
    }

    /// <summary>The bytes from an offset to the end of a log's file.</summary>
    internal static ulong CheckLength(SafeFileHandle file, string path, ulong offset, ulong required, string remedy = "")
    {
        var size = FileStatus.Get(file).stx_size;
        return offset <= size && required <= size - offset
            ? size - offset
            : throw Invalid($"{path} is {size} bytes long, too short: the log must reach {(offset == 0 ? "" : $"from offset {offset} ")}to byte {offset + required}.{remedy}");
    }

    /// <summary>Checks offset and length without a file.</summary>
    internal static void CheckNumbers(ulong offset, ulong length)
    {
        if (length == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A log has at least one byte.");
        if (offset > long.MaxValue || length > long.MaxValue - offset) throw Invalid($"A log of {length} bytes at offset {offset} is larger than any file.");
        if (!HostPage.IsAligned(offset, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.UnalignedOffset, $"The offset of a log must be a multiple of the page size, {HostPage.Size} bytes; {offset} is not.");
    }

    /// <summary>
    /// Brings in the pages of a part of the log, so that marking in it cannot fail: a hole in a file needs room on the disk. The caller
    /// holds a reference.
    /// </summary>
    internal void Populate(ulong firstByte, ulong lastByte)
    {
        var first = firstByte & ~(HostPage.Size - 1);
        var error = Mman.TryAdvise(_mapping.Address + (nint)first, (nuint)(lastByte - first + 1), Mman.MADV_POPULATE_WRITE);
        // EINVAL: a kernel before 5.14.
        if (error is not (0 or Errno.EINVAL))
            throw new SyscallException("madvise", error, $"Bringing in the dirty log {Path}", GuestMemoryError.InvalidLog, "Its file was cut short, or the disk is full.");
    }

    private void Release()
    {
        _mapping.Dispose();
        _memfd?.Dispose();
    }

    private static MmapLogReg Map(SafeHandle file, ulong offset, ulong length, string? path, SafeDescriptor? memfd = null)
    {
        CheckNumbers(offset, length);
        using var lease = new DescriptorLease(file);
        var number = lease.Number;
        var mapped = FileStatus.MappedLength(file, length);
        var mapping = RetryAfterCollection(() => Mman.TryMap(mapped, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, number, (long)offset, out var error)
            ?? throw new SyscallException("mmap", error, $"Mapping a dirty log of {length} bytes at offset {offset}", error == Errno.ENOMEM ? GuestMemoryError.OutOfMemory : GuestMemoryError.SyscallFailed));
        var size = FileStatus.Get(file).stx_size;
        if (offset <= size && length <= size - offset)
            return new MmapLogReg(mapping.ReserveAddresses(), length, (Memfd.Seals(file) & Memfd.F_SEAL_SHRINK) != 0, path ?? Descriptor.PathOf(number), memfd);
        mapping.Dispose();
        throw Invalid($"The log's file is {size} bytes long, shorter than offset {offset} plus {length} bytes.");
    }

    /// <summary>Tries again where descriptors or mappings have run out: logs that were never disposed may have them.</summary>
    private static T RetryAfterCollection<T>(Func<T> make)
    {
        try
        {
            return make();
        }
        catch (SyscallException exception) when (exception.ErrorCode is Errno.EMFILE or Errno.ENOMEM)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return make();
        }
    }

    private static SafeFileHandle Make(string path, ulong length)
    {
        var file = System.IO.File.OpenHandle(path, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.ReadWrite | FileShare.Delete, preallocationSize: (long)length);
        RandomAccess.SetLength(file, (long)length);
        return file;
    }

    /// <summary>Whether a path names a descriptor of a process: a link that only the kernel makes.</summary>
    private static bool IsDescriptor(string path) => path.Split('/') is ["", "proc", _, "fd", _];

    private static bool IsItself(SafeFileHandle file, string path)
    {
        var opened = FileStatus.Get(file);
        return FileStatus.TryGet(path, out var named) == 0 && (named.stx_dev_major, named.stx_dev_minor, named.stx_ino) == (opened.stx_dev_major, opened.stx_dev_minor, opened.stx_ino);
    }

    private static GuestMemoryException Link(string path) => new(GuestMemoryError.NotAFile,
        $"{path} is a symbolic link{(new FileInfo(path).LinkTarget is { } target ? $" to {target}" : "")}. A log is not written through a link, which could lead into any file: give the path of the file itself.");

    private static GuestMemoryException Invalid(string message) => new(GuestMemoryError.InvalidLog, message);
}
