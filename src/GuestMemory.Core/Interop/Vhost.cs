namespace GuestMemory.Core.Interop;

/// <summary>Constants of <c>linux/vhost_types.h</c>, <c>linux/virtio_ring.h</c> and <c>linux/virtio_config.h</c> that a back end uses.</summary>
internal static class Vhost
{
    // Numbers of bits.
    public const int VHOST_VRING_F_LOG = 0;
    public const int VHOST_F_LOG_ALL = 26;
    public const int VIRTIO_RING_F_INDIRECT_DESC = 28;
    public const int VIRTIO_RING_F_EVENT_IDX = 29;
    public const int VIRTIO_F_VERSION_1 = 32;

    // Values.
    public const ushort VRING_DESC_F_NEXT = 1;
    public const ushort VRING_DESC_F_WRITE = 2;
    public const ushort VRING_DESC_F_INDIRECT = 4;
    public const ushort VRING_USED_F_NO_NOTIFY = 1;
    public const ushort VRING_AVAIL_F_NO_INTERRUPT = 1;
}
