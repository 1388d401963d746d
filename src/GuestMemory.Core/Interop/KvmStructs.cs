using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct kvm_userspace_memory_region</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmUserspaceMemoryRegion
{
    public uint slot;
    public uint flags;
    public ulong guest_phys_addr;
    public ulong memory_size;
    public ulong userspace_addr;
}

/// <summary><c>struct kvm_dirty_log</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDirtyLog
{
    public uint slot;
    public uint padding1;
    public ulong dirty_bitmap;
}

/// <summary><c>struct kvm_clear_dirty_log</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmClearDirtyLog
{
    public uint slot;
    public uint num_pages;
    public ulong first_page;
    public ulong dirty_bitmap;
}

/// <summary><c>struct kvm_dirty_gfn</c>: an entry of a dirty ring.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDirtyGfn
{
    public uint flags;
    public uint slot;
    public ulong offset;
}

/// <summary><c>struct kvm_enable_cap</c>; only the first argument is ever used.</summary>
[StructLayout(LayoutKind.Explicit, Size = 104)]
internal struct KvmEnableCap
{
    [FieldOffset(0)] public uint cap;
    [FieldOffset(4)] public uint flags;
    [FieldOffset(8)] public ulong args;
}

/// <summary><c>struct kvm_ioeventfd</c>.</summary>
[StructLayout(LayoutKind.Explicit, Size = 64)]
internal struct KvmIoeventfd
{
    [FieldOffset(0)] public ulong datamatch;
    [FieldOffset(8)] public ulong addr;
    [FieldOffset(16)] public uint len;
    [FieldOffset(20)] public int fd;
    [FieldOffset(24)] public uint flags;
}

/// <summary><c>struct kvm_regs</c> of x86.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmRegs
{
    public ulong rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
}

/// <summary><c>struct kvm_segment</c> of x86.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmSegment
{
    public ulong @base;
    public uint limit;
    public ushort selector;
    public byte type, present, dpl, db, s, l, g, avl, unusable, padding;
}

/// <summary><c>struct kvm_dtable</c> of x86.</summary>
[StructLayout(LayoutKind.Explicit, Size = 16)]
internal struct KvmDtable
{
    [FieldOffset(0)] public ulong @base;
    [FieldOffset(8)] public ushort limit;
}

/// <summary><c>struct kvm_sregs</c> of x86.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmSregs
{
    public KvmSegment cs, ds, es, fs, gs, ss, tr, ldt;
    public KvmDtable gdt, idt;
    public ulong cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    public InterruptBitmap interrupt_bitmap;

    [InlineArray(4)]
    internal struct InterruptBitmap
    {
        private ulong _word;
    }
}

/// <summary><c>struct kvm_run</c>, as far as it is read here; the exits overlay one another.</summary>
[StructLayout(LayoutKind.Explicit, Size = 2352)]
internal struct KvmRun
{
    [FieldOffset(1)] public byte immediate_exit;
    [FieldOffset(8)] public uint exit_reason;
    [FieldOffset(32)] public ulong hw_hardware_exit_reason;
    [FieldOffset(32)] public byte io_direction;
    [FieldOffset(33)] public byte io_size;
    [FieldOffset(34)] public ushort io_port;
    [FieldOffset(36)] public uint io_count;
    [FieldOffset(40)] public ulong io_data_offset;
    [FieldOffset(32)] public ulong mmio_phys_addr;
    [FieldOffset(40)] public ulong mmio_data;
    [FieldOffset(48)] public uint mmio_len;
    [FieldOffset(52)] public byte mmio_is_write;
    [FieldOffset(32)] public uint internal_suberror;
}
