using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <content>The initial state of a vCPU.</content>
public sealed unsafe partial class KvmVcpu
{
    private const ulong GiB = 1 << 30;

    // Present, writable, accessed, and dirty at the lowest level, so that the processor does not write to the tables.
    private const ulong Table = 0x23;
    private const ulong LargePage = 0xE3;

    private const ulong ProtectedAndPaged = 0x80000033;   // CR0: PE, MP, ET, NE, PG
    private const ulong PhysicalAddressExtension = 0x20;  // CR4: PAE
    private const ulong LongModeActive = 0x500;           // EFER: LME, LMA

    /// <summary>Has the guest begin in real mode.</summary>
    /// <param name="address">The guest physical address of the first instruction, below 1 MiB. It becomes offset 0 to 15 of a segment; the other segments begin at 0.</param>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: above 1 MiB. VmDisposed.</exception>
    public void SetRealMode(GuestAddress address)
    {
        if (address.Value >= 1 << 20)
            throw new GuestMemoryException(GuestMemoryError.InvalidGuestAddress, $"Real mode begins below 1 MiB, not at {address}.") { Address = address.Value };
        lock (_lock)
        {
            ThrowIfStopped();
            var system = Get<KvmSregs>(KvmApi.KVM_GET_SREGS);
            system.cs.@base = address.Mask(~15UL);
            system.cs.selector = (ushort)(address.Value >> 4);
            foreach (ref var segment in new Span<KvmSegment>(&system.ds, 5))
            {
                segment.@base = 0;
                segment.selector = 0;
            }

            Set(KvmApi.KVM_SET_SREGS, system);
            Set(KvmApi.KVM_SET_REGS, new KvmRegs { rip = address.Mask(15), rflags = 2 });
        }
    }

    /// <summary>
    /// Starts the guest in 64-bit long mode, in ring 0, with the lower addresses identity-mapped. The page tables are written into base
    /// memory: a page for each GiB, and two more.
    /// </summary>
    /// <param name="address">The address of the first instruction.</param>
    /// <param name="pageTables">The guest physical address of the page tables; a multiple of the page size.</param>
    /// <param name="stack">The initial stack pointer.</param>
    /// <param name="mapped">The number of GiB to map, 1 to 512.</param>
    /// <exception cref="GuestMemoryException">NotPageAligned; InvalidGuestAddress, PartialBuffer: no base memory for the page tables. VmDisposed.</exception>
    public void SetLongMode(ulong address, GuestAddress pageTables, ulong stack = 0, int mapped = 4)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(mapped, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(mapped, 512);
        if (!HostPage.IsAligned(pageTables.Value, 4096))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"Page tables begin with a page, not at {pageTables}.") { Address = pageTables.Value };
        lock (_lock)
        {
            ThrowIfStopped();
            var tables = BuildTables(pageTables.Value, mapped);
            _owner.Memory.WriteExact(pageTables, MemoryMarshal.AsBytes<ulong>(tables));
            var system = Get<KvmSregs>(KvmApi.KVM_GET_SREGS);
            system.cs = new KvmSegment { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 };
            new Span<KvmSegment>(&system.ds, 5).Fill(new KvmSegment { limit = uint.MaxValue, selector = 16, type = 3, present = 1, db = 1, s = 1, g = 1 });
            system.cr0 = ProtectedAndPaged;
            system.cr3 = pageTables.Value;
            system.cr4 = PhysicalAddressExtension;
            system.efer = LongModeActive;
            Set(KvmApi.KVM_SET_SREGS, system);
            Set(KvmApi.KVM_SET_REGS, new KvmRegs { rip = address, rsp = stack, rflags = 2 });
        }
    }

    /// <summary>The general registers.</summary>
    internal KvmRegs Registers
    {
        get
        {
            lock (_lock) return Get<KvmRegs>(KvmApi.KVM_GET_REGS);
        }
        set
        {
            lock (_lock) Set(KvmApi.KVM_SET_REGS, value);
        }
    }

    private static ulong[] BuildTables(ulong at, int mapped)
    {
        var tables = new ulong[(mapped + 2) * 512];
        tables[0] = at + 4096 | Table;
        for (var i = 0; i < mapped; i++) tables[512 + i] = at + (ulong)(i + 2) * 4096 | Table;
        for (var i = 0; i < mapped * 512; i++) tables[1024 + i] = (ulong)i * (GiB / 512) | LargePage;
        return tables;
    }

    private T Get<T>(uint request)
        where T : unmanaged
    {
        ThrowIfStopped();
        var state = default(T);
        var error = KvmApi.Try(_vcpu, request, ref state);
        return error == 0 ? state : throw new SyscallException("ioctl(KVM_GET_REGS)", error, $"Reading the registers of vCPU {Id}");
    }

    private void Set<T>(uint request, T state)
        where T : unmanaged
    {
        ThrowIfStopped();
        var error = KvmApi.Try(_vcpu, request, ref state);
        if (error != 0) throw new SyscallException("ioctl(KVM_SET_REGS)", error, $"Setting the registers of vCPU {Id}");
    }
}
