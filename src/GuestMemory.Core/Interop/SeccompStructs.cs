namespace GuestMemory.Core.Interop;

/// <summary><c>struct sock_filter</c>: an instruction of a filter.</summary>
internal struct SockFilter
{
    public ushort code;
    public byte jt;
    public byte jf;
    public uint k;
}

/// <summary><c>struct sock_fprog</c>: a filter.</summary>
internal unsafe struct SockFprog
{
    public ushort len;
    public SockFilter* filter;
}
