using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct sockaddr_un</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct SockAddrUn
{
    public ushort sun_family;
    public fixed byte sun_path[108];
}

/// <summary><c>struct msghdr</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct MsgHdr
{
    public void* msg_name;
    public uint msg_namelen;
    public IoVec* msg_iov;
    public nuint msg_iovlen;
    public void* msg_control;
    public nuint msg_controllen;
    public int msg_flags;
}

/// <summary><c>struct cmsghdr</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct CmsgHdr
{
    public nuint cmsg_len;
    public int cmsg_level;
    public int cmsg_type;
}

/// <summary><c>struct ucred</c>: the other end of a Unix socket, as it was when it connected.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UCred
{
    public int pid;
    public uint uid;
    public uint gid;
}

/// <summary><c>struct timeval</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct TimeVal
{
    public long tv_sec;
    public long tv_usec;
}
