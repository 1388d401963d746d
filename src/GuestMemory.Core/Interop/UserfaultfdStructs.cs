using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct uffdio_api</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioApi
{
    public ulong api;
    public ulong features;
    public ulong ioctls;
}

/// <summary><c>struct uffdio_range</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioRange
{
    public ulong start;
    public ulong len;
}

/// <summary><c>struct uffdio_register</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioRegister
{
    public UffdioRange range;
    public ulong mode;
    public ulong ioctls;
}

/// <summary><c>struct uffdio_copy</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioCopy
{
    public ulong dst;
    public ulong src;
    public ulong len;
    public ulong mode;
    public long copy;
}

/// <summary><c>struct uffdio_zeropage</c>; <c>uffdio_poison</c> and <c>uffdio_continue</c> have the same layout.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioZeropage
{
    public UffdioRange range;
    public ulong mode;
    public long zeropage;
}

/// <summary><c>struct uffdio_writeprotect</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdioWriteprotect
{
    public UffdioRange range;
    public ulong mode;
}

/// <summary><c>struct uffd_msg</c>: one event, 32 bytes. Fields of the union carry the name of their event.</summary>
[StructLayout(LayoutKind.Explicit, Size = 32)]
internal struct UffdMsg
{
    [FieldOffset(0)] public byte @event;
    [FieldOffset(8)] public ulong pagefault_flags;
    [FieldOffset(16)] public ulong pagefault_address;
    [FieldOffset(24)] public uint pagefault_ptid;
    [FieldOffset(8)] public uint fork_ufd;
    [FieldOffset(8)] public ulong remap_from;
    [FieldOffset(16)] public ulong remap_to;
    [FieldOffset(24)] public ulong remap_len;
    [FieldOffset(8)] public ulong remove_start;
    [FieldOffset(16)] public ulong remove_end;
}
