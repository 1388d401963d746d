using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// A disk for the VM of another process: a raw image that a vhost-user back end provides at a socket as a virtio-blk device. Used as memory it
/// is that of the VM that is connected. Disposing of it ends the connection when no request is under way, and closes the image. For any thread.
/// </summary>
public sealed class VhostUserDisk : IGuestMemorySource, IDisposable
{
    private readonly SafeFileHandle _image;
    private readonly BlockDevice _device;
    private readonly VhostUserBackend _backend;
    private volatile bool _isStopped;

    private VhostUserDisk(VhostUserDiskOptions options, SafeFileHandle image, BlockDevice device, VhostUserBackend backend)
    {
        Name = options.Name;
        ImagePath = options.ImagePath;
        (_image, _device, _backend) = (image, device, backend);
    }

    /// <summary>The name; the guest sees its first 20 ASCII characters as the disk's serial number.</summary>
    public string Name { get; }

    /// <summary>Whether a front end is connected.</summary>
    public VhostUserDiskState State => _isStopped ? VhostUserDiskState.Stopped : ProcessId is null ? VhostUserDiskState.Listening : VhostUserDiskState.Connected;

    /// <summary>Where the back end listens.</summary>
    public string SocketPath => _backend.SocketPath;

    /// <summary>The image.</summary>
    public string ImagePath { get; }

    /// <summary>The size of the disk, in bytes.</summary>
    public ulong Size => _device.Capacity * BlockDevice.SectorSize;

    /// <summary>Whether the guest may not change the disk.</summary>
    public bool IsReadOnly => _device.IsReadOnly;

    /// <summary>How many virtqueues a front end may use.</summary>
    public int QueueCount => _device.QueueCount;

    /// <summary>The process that is connected; null where none is.</summary>
    public int? ProcessId => _backend.FrontEndProcessId;

    /// <summary>The memory of the VM that is connected; without regions where none is. The front end may take regions away at any time.</summary>
    public GuestMemoryMmap Memory => _backend.Memory;

    /// <summary>The size of that memory, in bytes.</summary>
    public ulong MemorySize => Memory.Size;

    /// <summary>
    /// Whether writes to that memory are marked in the dirty log of the front end, which then migrates the VM. QEMU leaves it on after a migration
    /// that has completed (postmigrate), and turns it off when the VM goes on.
    /// </summary>
    public bool IsLogging => _backend.IsLogging;

    /// <summary>Whether the VM arrives by a post-copy migration: it runs here, and an access to its memory may wait for a page of the source.</summary>
    public bool IsPostcopy => _backend.IsPostcopy;

    /// <summary>How many front ends have connected.</summary>
    public int ConnectionCount => _backend.ConnectionCount;

    /// <summary>What ended the last connection, or refused the last front end; null where nothing did. ImageInUse ends one whose guest begins to use a disk that another process has.</summary>
    public string? Error => _backend.Error;

    /// <summary>Opens an image and listens.</summary>
    /// <param name="options">Which, and where.</param>
    /// <exception cref="GuestMemoryException">
    /// ImageNotFound; ImageUnreadable: the image is empty, no file, or cannot be opened; InvalidImage: its length is no multiple of 512 bytes;
    /// SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.
    /// </exception>
    /// <exception cref="ArgumentOutOfRangeException">The number of virtqueues.</exception>
    public static VhostUserDisk Start(VhostUserDiskOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        var image = Open(options.ImagePath, options.IsReadOnly);
        try
        {
            var device = new BlockDevice(image, options.IsReadOnly, options.QueueCount, options.Name);
            return new VhostUserDisk(options, image, device, VhostUserBackend.Start(options.SocketPath, device, options.AllowUser, options.TrustFrontEnd, options.Force));
        }
        catch
        {
            image.Dispose();
            throw;
        }
    }

    /// <summary>The memory of the VM that is connected.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound: none is connected.</exception>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => Memory.Regions is { Count: > 0 } regions
        ? regions
        : throw new GuestMemoryException(GuestMemoryError.VmNotFound, State == VhostUserDiskState.Connected
            ? $"Process {ProcessId}, which is connected to the back end '{Name}', has not shared the memory of its VM yet."
            : $"No VM is connected to the back end '{Name}'{(_isStopped ? ", which was stopped" : $" at {SocketPath}")}.");

    /// <summary>Ends the connection, listens no more and closes the image; returns when no request is under way.</summary>
    public void Dispose()
    {
        _isStopped = true;
        _backend.Dispose();
        _device.Dispose();
        _image.Dispose();
    }

    /// <summary>The name and the socket.</summary>
    public override string ToString() => $"{Name} at {SocketPath}";

    private static SafeFileHandle Open(string path, bool isReadOnly)
    {
        // Opening a pipe would wait for a writer.
        if (FileStatus.IsSpecial(path))
            throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"{path} is a directory, a device, a pipe or a socket; the image of a disk is a file.");
        try
        {
            var image = File.OpenHandle(path, FileMode.Open, isReadOnly ? FileAccess.Read : FileAccess.ReadWrite, FileShare.ReadWrite);
            try
            {
                Check(path, RandomAccess.GetLength(image));
                return image;
            }
            catch
            {
                image.Dispose();
                throw;
            }
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no disk image at {path}.", exception);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The disk image {path} cannot be opened for {(isReadOnly ? "reading" : "reading and writing")}: {exception.Message}", exception);
        }
    }

    private static void Check(string path, long length)
    {
        if (length == 0) throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The disk image {path} is empty.");
        if (length % BlockDevice.SectorSize != 0)
        {
            throw new GuestMemoryException(GuestMemoryError.InvalidImage,
                $"The disk image {path} has {length} bytes; a disk has whole sectors of {BlockDevice.SectorSize}. Lengthen it: 'truncate -s %{BlockDevice.SectorSize} {path}'.");
        }
    }
}
