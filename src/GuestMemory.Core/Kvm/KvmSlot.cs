namespace GuestMemory.Core.Kvm;

/// <summary>A memory slot of a VM: a range of guest physical addresses and the host memory that backs it.</summary>
public sealed class KvmSlot
{
    private readonly SlotMemory? _mapping;

    internal KvmSlot(uint slot, ulong guestAddress, MmapRegion memory, SlotMemory? mapping, bool readOnly, bool logDirtyPages)
    {
        Slot = slot;
        GuestAddress = guestAddress;
        Size = HostPage.RoundUp(memory.Size, HostPage.Size);
        Memory = memory;
        _mapping = mapping;
        ReadOnly = readOnly;
        LogDirtyPages = logDirtyPages;
    }

    /// <summary>The number.</summary>
    public uint Slot { get; }

    /// <summary>The first guest physical address.</summary>
    public ulong GuestAddress { get; }

    /// <summary>The length in bytes, whole pages.</summary>
    public ulong Size { get; }

    /// <summary>The last guest physical address.</summary>
    public ulong LastAddress => GuestAddress + (Size - 1);

    /// <summary>Whether a write of the guest is an MMIO exit and does not change the memory.</summary>
    public bool ReadOnly { get; }

    /// <summary>Whether the pages that the guest writes are logged.</summary>
    public bool LogDirtyPages { get; }

    /// <summary>Whether it is base memory, which the VM was made with.</summary>
    public bool IsBase => _mapping is null;

    /// <summary>The memory that was added; null for base memory.</summary>
    public SlotMemory? GetSlotMemory() => _mapping;

    /// <summary>The number and the guest addresses, for debuggers and messages: "slot 1 [0x100000000-0x100000fff], logged".</summary>
    public override string ToString() => $"slot {Slot} [0x{GuestAddress:x}-0x{LastAddress:x}]{(ReadOnly ? ", read-only" : "")}{(LogDirtyPages ? ", logged" : "")}";

    internal MmapRegion Memory { get; }

    /// <summary>Marks that were read out of KVM, and that no query has taken yet.</summary>
    internal ulong[]? Marks { get; set; }

    internal int PageCount => (int)(Size / HostPage.Size);
}
