using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Constants of <c>linux/virtio_blk.h</c>.</summary>
internal static class VirtioBlk
{
    // Numbers of bits.
    public const int VIRTIO_BLK_F_SEG_MAX = 2;
    public const int VIRTIO_BLK_F_RO = 5;
    public const int VIRTIO_BLK_F_BLK_SIZE = 6;
    public const int VIRTIO_BLK_F_FLUSH = 9;
    public const int VIRTIO_BLK_F_MQ = 12;
    public const int VIRTIO_BLK_F_DISCARD = 13;
    public const int VIRTIO_BLK_F_WRITE_ZEROES = 14;

    // Kinds of requests.
    public const uint VIRTIO_BLK_T_IN = 0;
    public const uint VIRTIO_BLK_T_OUT = 1;
    public const uint VIRTIO_BLK_T_FLUSH = 4;
    public const uint VIRTIO_BLK_T_GET_ID = 8;
    public const uint VIRTIO_BLK_T_DISCARD = 11;
    public const uint VIRTIO_BLK_T_WRITE_ZEROES = 13;

    // Their ends.
    public const byte VIRTIO_BLK_S_OK = 0;
    public const byte VIRTIO_BLK_S_IOERR = 1;
    public const byte VIRTIO_BLK_S_UNSUPP = 2;

    public const int VIRTIO_BLK_ID_BYTES = 20;
    public const uint VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;
}

/// <summary><c>struct virtio_blk_outhdr</c>: what a request begins with.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VirtioBlkOuthdr
{
    public uint type;
    public uint ioprio;
    public ulong sector;
}

/// <summary><c>struct virtio_blk_discard_write_zeroes</c>: a range of sectors.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VirtioBlkDiscardWriteZeroes
{
    public ulong sector;
    public uint num_sectors;
    public uint flags;
}

/// <summary><c>struct virtio_blk_config</c> up to its last member of virtio 1.1, with the members that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 60)]
internal struct VirtioBlkConfig
{
    [FieldOffset(0)] public ulong capacity;
    [FieldOffset(12)] public uint seg_max;
    [FieldOffset(20)] public uint blk_size;
    [FieldOffset(34)] public ushort num_queues;
    [FieldOffset(36)] public uint max_discard_sectors;
    [FieldOffset(40)] public uint max_discard_seg;
    [FieldOffset(44)] public uint discard_sector_alignment;
    [FieldOffset(48)] public uint max_write_zeroes_sectors;
    [FieldOffset(52)] public uint max_write_zeroes_seg;
    [FieldOffset(56)] public byte write_zeroes_may_unmap;
}
