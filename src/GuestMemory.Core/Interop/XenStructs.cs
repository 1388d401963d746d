using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct privcmd_mmapbatch_v2</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct PrivcmdMmapbatchV2
{
    public uint num;
    public ushort dom;
    public ulong addr;
    public ulong* arr;
    public int* err;
}

/// <summary><c>struct ioctl_gntdev_grant_ref</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct IoctlGntdevGrantRef
{
    public uint domid;
    public uint @ref;
}

/// <summary><c>struct ioctl_gntdev_map_grant_ref</c> with the first of its references; the others follow it.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct IoctlGntdevMapGrantRef
{
    public uint count;
    public uint pad;
    public ulong index;
    public IoctlGntdevGrantRef refs;
}

/// <summary><c>struct ioctl_gntdev_unmap_grant_ref</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct IoctlGntdevUnmapGrantRef
{
    public ulong index;
    public uint count;
    public uint pad;
}
