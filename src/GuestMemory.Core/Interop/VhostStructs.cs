using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct vhost_vring_state</c>: a ring and a number.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VhostVringState
{
    public uint index;
    public uint num;
}

/// <summary><c>struct vhost_vring_addr</c>: where a ring lies, in addresses of the front end.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VhostVringAddr
{
    public uint index;
    public uint flags;
    public ulong desc_user_addr;
    public ulong used_user_addr;
    public ulong avail_user_addr;
    public ulong log_guest_addr;
}

/// <summary><c>struct vhost_memory_region</c>. In vhost-user messages the last field is the offset of the region in its file.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VhostMemoryRegion
{
    public ulong guest_phys_addr;
    public ulong memory_size;
    public ulong userspace_addr;
    public ulong flags_padding;
}

/// <summary><c>struct vring_desc</c>: a descriptor of a split virtqueue.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VringDesc
{
    public ulong addr;
    public uint len;
    public ushort flags;
    public ushort next;
}

/// <summary><c>struct vring_used_elem</c>: an entry of a used ring.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VringUsedElem
{
    public uint id;
    public uint len;
}
