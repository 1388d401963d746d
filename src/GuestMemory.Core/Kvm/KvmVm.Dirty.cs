using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <content>Dirty logs and rings, and the vCPUs, each of which has a ring.</content>
public sealed unsafe partial class KvmVm
{
    private bool _overrun;

    /// <summary>The length of a dirty log in bytes: a bit a page (crosvm's dirty_log_bitmap_size).</summary>
    /// <param name="size">The memory's length in bytes.</param>
    public static ulong DirtyLogSize(ulong size)
    {
        var pages = size / HostPage.Size + (size % HostPage.Size == 0 ? 0UL : 1UL);
        return (pages + 7) / 8;
    }

    /// <summary>
    /// The pages of a slot that the guest wrote; writes of the host are not logged. With <paramref name="clear"/> the marks are taken:
    /// none is lost, and none is reported twice.
    /// </summary>
    /// <remarks>While a vCPU runs, the processor may hold back its last few hundred marks until the next exit.</remarks>
    /// <exception cref="GuestMemoryException">SlotNotFound; DirtyTrackingOff; DirtyRingOverrun; VmDisposed.</exception>
    public DirtyBitmap GetDirtyBitmap(uint slot, bool clear = false)
    {
        lock (_lock)
        {
            if (_disposed) throw new GuestMemoryException(GuestMemoryError.VmDisposed, $"{this} was removed, and the log of what its guest wrote with it.");
            if (!_slots.TryGetValue(slot, out var found))
                throw new GuestMemoryException(GuestMemoryError.SlotNotFound, $"{this} has no slot {slot}. Its property Slots lists those it has.");
            if (!found.LogDirtyPages)
                throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"KVM does not log what the guest writes to slot {slot} of {this}: the slot was made without dirty logging.");
            var words = _options.DirtyLog switch
            {
                DirtyLogMode.Ring => TakeRing(found, clear),
                DirtyLogMode.Plain => TakePlain(found, clear),
                _ => TakeProtected(found, clear),
            };
            return new DirtyBitmap(found.GuestAddress, found.Size, HostPage.Size, words, $"{this} slot {slot}");
        }
    }

    /// <summary>Adds a vCPU; only on x86-64.</summary>
    /// <exception cref="GuestMemoryException">KvmUnsupported: another architecture. VmDisposed.</exception>
    /// <exception cref="SyscallException">Any error of KVM.</exception>
    public KvmVcpu CreateVcpu()
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            var vcpu = new KvmVcpu(this, _vm, _vcpus.Count, _options.DirtyLog == DirtyLogMode.Ring ? (int)_options.DirtyRingEntries : 0);
            _vcpus.Add(vcpu);
            return vcpu;
        }
    }

    /// <summary>Harvests the rings of the vCPUs, so that a vCPU with a full ring can run again.</summary>
    internal void HarvestRings()
    {
        lock (_lock)
        {
            if (_disposed) return;
            Harvest();
            ThrowIfOverrun();
        }
    }

    /// <summary>Harvests the rings before a vCPU is closed, and closes it while no other thread reads its ring.</summary>
    internal void CloseVcpu(Action close)
    {
        lock (_lock)
        {
            if (!_disposed) Harvest();
            close();
        }
    }

    private void EnableDirtyLog()
    {
        if (_options.DirtyLog == DirtyLogMode.Ring && (!uint.IsPow2(_options.DirtyRingEntries) || _options.DirtyRingEntries is < 1024 or > 65536))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A dirty ring has a power of two of entries, from 1024 to 65536, not {_options.DirtyRingEntries}.");
        var capability = _options.DirtyLog switch
        {
            DirtyLogMode.Ring => KvmApi.Extension(_vm, KvmApi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL) != 0 ? KvmApi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL : KvmApi.KVM_CAP_DIRTY_LOG_RING,
            _ => KvmApi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        };
        var argument = _options.DirtyLog switch
        {
            DirtyLogMode.Plain => 0UL,
            DirtyLogMode.ManualProtect => KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
            DirtyLogMode.InitiallySet => KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KvmApi.KVM_DIRTY_LOG_INITIALLY_SET,
            _ => _options.DirtyRingEntries * (ulong)sizeof(KvmDirtyGfn),
        };
        if (argument == 0) return;
        var enable = new KvmEnableCap { cap = capability, args = argument };
        var error = KvmApi.Try(_vm, KvmApi.KVM_ENABLE_CAP, ref enable);
        if (error == 0) return;
        throw new SyscallException("ioctl(KVM_ENABLE_CAP)", error, $"Choosing the dirty log {_options.DirtyLog}", GuestMemoryError.KvmUnsupported, _options.DirtyLog == DirtyLogMode.Ring
            ? $"KVM must have dirty rings (Linux 5.11), of {_options.DirtyRingEntries} entries."
            : "This kernel's KVM lacks it; the log Plain is always there.");
    }

    private ulong[] TakeProtected(KvmSlot slot, bool clear)
    {
        var words = GetLog(slot);
        if (!clear) return words;
        fixed (ulong* bits = words)
        {
            var argument = new KvmClearDirtyLog { slot = slot.Slot, num_pages = (uint)slot.PageCount, dirty_bitmap = (ulong)bits };
            var error = KvmApi.Try(_vm, KvmApi.KVM_CLEAR_DIRTY_LOG, ref argument);
            return error == 0 ? words : throw new SyscallException("ioctl(KVM_CLEAR_DIRTY_LOG)", error, $"Clearing the dirty log of slot {slot.Slot}");
        }
    }

    private ulong[] TakePlain(KvmSlot slot, bool clear)
    {
        var words = GetLog(slot);
        if (slot.Marks is { } before)
        {
            for (var i = 0; i < words.Length; i++) words[i] |= before[i];
        }

        slot.Marks = clear ? null : [.. words];
        return words;
    }

    private ulong[] TakeRing(KvmSlot slot, bool clear)
    {
        Harvest();
        ThrowIfOverrun();
        var words = slot.Marks ?? new ulong[Words(slot)];
        slot.Marks = clear ? null : [.. words];
        return words;
    }

    private ulong[] GetLog(KvmSlot slot)
    {
        var words = new ulong[Words(slot)];
        fixed (ulong* bits = words)
        {
            var argument = new KvmDirtyLog { slot = slot.Slot, dirty_bitmap = (ulong)bits };
            var error = KvmApi.Try(_vm, KvmApi.KVM_GET_DIRTY_LOG, ref argument);
            return error == 0 ? words : throw new SyscallException("ioctl(KVM_GET_DIRTY_LOG)", error, $"Reading the dirty log of slot {slot.Slot}");
        }
    }

    private static int Words(KvmSlot slot) => (int)((DirtyLogSize(slot.Size) + 7) / 8);

    private void Harvest()
    {
        var count = 0;
        foreach (var vcpu in _vcpus)
        {
            var entries = vcpu.HarvestRing(Mark);
            // KVM stops a guest well before its ring is full. A guest whose instructions KVM emulates one by one is stopped only at its
            // next exit: its ring may have run over, and then pages are missing, and KVM's position in the ring is unknown.
            _overrun |= entries == _options.DirtyRingEntries;
            count += entries;
        }

        if (count > 0) _ = KvmApi.Try(_vm, KvmApi.KVM_RESET_DIRTY_RINGS, 0, out _);
    }

    private void ThrowIfOverrun()
    {
        if (_overrun)
            throw new GuestMemoryException(GuestMemoryError.DirtyRingOverrun, $"The guest wrote more pages than a dirty ring of {this} has entries before KVM stopped it, so some pages are missing. Make the VM with a larger ring, or with another log.");
    }

    private void Mark(uint number, ulong page)
    {
        // The upper half is the address space: 1 is system management mode.
        if (!_slots.TryGetValue(number & 0xFFFF, out var slot) || page >= (ulong)slot.PageCount) return;
        var marks = slot.Marks ??= new ulong[Words(slot)];
        marks[page >> 6] |= 1UL << (int)(page & 63);
    }
}
