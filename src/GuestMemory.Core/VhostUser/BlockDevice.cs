using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// A disk (virtio-blk, virtio 1.2 section 5.2) on a raw file: reads, writes, flushes, discards, writes zeros and tells its id. Each virtqueue has a
/// thread and an io_uring of its own, or a few threads where the host has none, so that a request that the disk is slow to answer holds up no
/// other. It serves one connection at a time; dispose of it after the connection. While a virtqueue runs, the image is locked as QEMU locks its own: no other
/// program that does so writes it, and none uses it where this one writes. A device whose virtqueues do not run leaves it to others: the
/// destination of a migration opens it before the source ends.
/// </summary>
public sealed class BlockDevice : IVhostUserDevice, IDisposable
{
    /// <summary>The bytes of a sector, the unit of all addresses on the disk.</summary>
    public const int SectorSize = 512;

    /// <summary>The most pieces of memory of a request's data. With header and status they fit into a virtqueue of 128, the usual size.</summary>
    internal const int MaxSegments = 126;

    /// <summary>The most ranges that a request discards or zeroes.</summary>
    internal const int MaxRanges = 32;

    // What front ends ask for at most (VHOST_USER_MAX_CONFIG_SIZE). What the disk has no use for is zero.
    private const int ConfigSize = 256;

    private const int MaxQueueCount = 256;

    private readonly Dictionary<int, BlockQueue> _queues = [];

    /// <param name="image">The raw image; its length in whole sectors is the disk's. It stays the caller's.</param>
    /// <param name="isReadOnly">Whether the guest may not change it.</param>
    /// <param name="queueCount">The virtqueues, 1 to 256: as many as the guest has vCPUs is the usual choice.</param>
    /// <param name="id">What the guest sees as the serial number, in ASCII; what comes after 20 characters is left out.</param>
    /// <exception cref="ArgumentOutOfRangeException">The number of virtqueues.</exception>
    public BlockDevice(SafeFileHandle image, bool isReadOnly, int queueCount = 1, string id = "")
    {
        ArgumentNullException.ThrowIfNull(image);
        ArgumentNullException.ThrowIfNull(id);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(queueCount);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(queueCount, MaxQueueCount);
        Image = image;
        IsReadOnly = isReadOnly;
        QueueCount = queueCount;
        Capacity = (ulong)RandomAccess.GetLength(image) / SectorSize;
        Id = new byte[VirtioBlk.VIRTIO_BLK_ID_BYTES];
        System.Text.Encoding.ASCII.GetBytes(id.AsSpan(0, Math.Min(id.Length, Id.Length)), Id);
    }

    /// <summary>Its sectors.</summary>
    public ulong Capacity { get; }

    /// <summary>Whether the guest may not change it.</summary>
    public bool IsReadOnly { get; }

    /// <inheritdoc/>
    public int QueueCount { get; }

    /// <inheritdoc/>
    public int MaxQueueSize => 1024;

    /// <inheritdoc/>
    public ulong Features => SplitQueue.SupportedFeatures | Bit(VirtioBlk.VIRTIO_BLK_F_SEG_MAX) | Bit(VirtioBlk.VIRTIO_BLK_F_BLK_SIZE) | Bit(VirtioBlk.VIRTIO_BLK_F_FLUSH)
        | (QueueCount > 1 ? Bit(VirtioBlk.VIRTIO_BLK_F_MQ) : 0)
        | (IsReadOnly ? Bit(VirtioBlk.VIRTIO_BLK_F_RO) : Bit(VirtioBlk.VIRTIO_BLK_F_DISCARD) | Bit(VirtioBlk.VIRTIO_BLK_F_WRITE_ZEROES));

    internal SafeFileHandle Image { get; }

    /// <summary>What carries out its requests, in place of what the host has; for tests.</summary>
    internal Func<VhostUserVring, SafeDescriptor, IDiskIo>? IoFactory { get; init; }

    internal byte[] Id { get; }

    /// <inheritdoc/>
    public bool TryReadConfig(uint offset, Span<byte> destination)
    {
        var config = new VirtioBlkConfig
        {
            capacity = Capacity,
            seg_max = MaxSegments,
            blk_size = SectorSize,
            num_queues = (ushort)QueueCount,
            max_discard_sectors = uint.MaxValue / SectorSize,
            max_discard_seg = MaxRanges,
            discard_sector_alignment = 1,
            max_write_zeroes_sectors = uint.MaxValue / SectorSize,
            max_write_zeroes_seg = MaxRanges,
            write_zeroes_may_unmap = 1,
        };
        Span<byte> bytes = stackalloc byte[ConfigSize];
        bytes.Clear();
        MemoryMarshal.Write(bytes, config);
        if (offset > ConfigSize || destination.Length > ConfigSize - (int)offset) return false;
        bytes.Slice((int)offset, destination.Length).CopyTo(destination);
        return true;
    }

    /// <inheritdoc/>
    public void StartVring(VhostUserVring vring)
    {
        ArgumentNullException.ThrowIfNull(vring);
        if (_queues.Count == 0) ImageLock.Take(Image, IsReadOnly);
        try
        {
            _queues.Add(vring.Index, BlockQueue.Start(this, vring));
        }
        catch
        {
            ReleaseIdleImage();
            throw;
        }
    }

    /// <inheritdoc/>
    public void StopVring(VhostUserVring vring)
    {
        ArgumentNullException.ThrowIfNull(vring);
        if (!_queues.Remove(vring.Index, out var queue)) return;
        queue.Dispose();
        ReleaseIdleImage();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_queues.Count == 0) return;
        foreach (var queue in _queues.Values) queue.Dispose();
        _queues.Clear();
        ReleaseIdleImage();
    }

    /// <summary>Whether so many sectors from one on lie on the disk.</summary>
    internal bool Has(ulong sector, uint count) => sector <= Capacity && count <= Capacity - sector;

    internal IDiskIo OpenIo(VhostUserVring vring, SafeDescriptor stop) => IoFactory?.Invoke(vring, stop)
        ?? (vring.MayWait ? null : (IDiskIo?)UringDiskIo.TryOpen(Image, vring.Kick, stop, vring.Size)) ?? new ThreadDiskIo(Image, vring.Kick, stop, vring.MayWait);

    private void ReleaseIdleImage()
    {
        if (_queues.Count == 0) ImageLock.Release(Image);
    }

    private static ulong Bit(int number) => 1UL << number;
}
