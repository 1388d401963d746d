using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct io_uring_sqe</c> of <c>linux/io_uring.h</c>, with the members that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 64)]
internal struct IoUringSqe
{
    [FieldOffset(0)] public byte opcode;
    [FieldOffset(4)] public int fd;
    [FieldOffset(8)] public ulong off;
    [FieldOffset(16)] public ulong addr;
    [FieldOffset(24)] public uint len;

    /// <summary>The flags of the operation: fsync_flags and poll32_events are other names of the same member.</summary>
    [FieldOffset(28)] public uint rw_flags;
    [FieldOffset(32)] public ulong user_data;
}

/// <summary><c>struct io_uring_cqe</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct IoUringCqe
{
    public ulong user_data;
    public int res;
    public uint flags;
}

/// <summary><c>struct io_sqring_offsets</c>, with the members that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 40)]
internal struct IoSqringOffsets
{
    [FieldOffset(0)] public uint head;
    [FieldOffset(4)] public uint tail;
    [FieldOffset(8)] public uint ring_mask;
    [FieldOffset(24)] public uint array;
}

/// <summary><c>struct io_cqring_offsets</c>, with the members that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 40)]
internal struct IoCqringOffsets
{
    [FieldOffset(0)] public uint head;
    [FieldOffset(4)] public uint tail;
    [FieldOffset(8)] public uint ring_mask;
    [FieldOffset(20)] public uint cqes;
}

/// <summary><c>struct io_uring_params</c>, with the members that are used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 120)]
internal struct IoUringParams
{
    [FieldOffset(0)] public uint sq_entries;
    [FieldOffset(4)] public uint cq_entries;
    [FieldOffset(8)] public uint flags;
    [FieldOffset(20)] public uint features;
    [FieldOffset(40)] public IoSqringOffsets sq_off;
    [FieldOffset(80)] public IoCqringOffsets cq_off;
}
