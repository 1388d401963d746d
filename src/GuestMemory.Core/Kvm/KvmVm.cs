using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>
/// A virtual machine of KVM (crosvm's KvmVm): its memory slots, and operations on their memory. It owns the memory that is added. The
/// regions of the base memory have the first slots and stay the caller's; they cannot be removed without force until the VM is closed.
/// </summary>
public sealed partial class KvmVm : IVm, IRegionHolder
{
    private static int s_lastId;

    private readonly Lock _lock = new();
    private readonly Lock _removal = new();
    private readonly SafeDescriptor _vm;
    private readonly SortedDictionary<uint, KvmSlot> _slots = [];
    private readonly SortedSet<uint> _gaps = [];
    private readonly List<KvmVcpu> _vcpus = [];
    private readonly KvmVmOptions _options;
    private readonly uint _baseCount;
    private uint _addedCount;

    // Removal has begun: every operation is refused.
    private volatile bool _disposed;

    // Removal has ended: no vCPU runs, and KVM no longer uses the memory.
    private volatile bool _closed;

    /// <summary>Makes a VM.</summary>
    /// <param name="memory">The base memory, of whole pages; it may be empty.</param>
    /// <param name="options">The options.</param>
    /// <exception cref="GuestMemoryException">
    /// KvmDenied; KvmUnsupported; UnalignedSize, NotPageAligned: a region that is not made of whole pages; RegionDisposed.
    /// </exception>
    public KvmVm(GuestMemoryMmap memory, KvmVmOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(memory);
        foreach (var region in memory.Regions) CheckRegion(region);
        _options = options ?? new KvmVmOptions();
        Memory = memory;
        Id = Interlocked.Increment(ref s_lastId);
        Name = _options.Name ?? Id.ToString(System.Globalization.CultureInfo.InvariantCulture);
        using var device = KvmApi.Open();
        _vm = KvmApi.CreateVm(device);
        try
        {
            EnableDirtyLog();
            foreach (var region in memory.Regions)
            {
                var readOnly = (region.Protection & MemoryProtection.Write) == 0;
                Insert(new KvmSlot(_baseCount++, region.GuestAddress, region.GetMmapRegion(), null, readOnly, _options.LogDirtyPages), $"Giving the VM region {region}");
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>A number that is unique in this process.</summary>
    public int Id { get; }

    /// <summary>The name.</summary>
    public string Name { get; }

    /// <inheritdoc/>
    public GuestMemoryMmap Memory { get; }

    /// <summary>The kind of log of written pages.</summary>
    public DirtyLogMode DirtyLog => _options.DirtyLog;

    /// <summary>The slots, in the order of their numbers, as they are now.</summary>
    public IReadOnlyList<KvmSlot> Slots
    {
        get
        {
            lock (_lock) return _slots.Values.ToArray();   // A script can index an array.
        }
    }

    /// <summary>Whether the VM was removed, or is being removed.</summary>
    public bool IsDisposed => _disposed;

    string IRegionHolder.Description => ToString();

    // Not under the VM's lock: a region asks under its own lock, which is taken under the VM's. A vCPU may run until the VM is closed.
    bool IRegionHolder.IsLive => !_closed;

    bool IRegionHolder.ProvidesPages => false;

    /// <inheritdoc/>
    public uint AddMemoryRegion(GuestAddress address, SlotMemory mapping, bool readOnly, bool logDirtyPages, MemCacheType cache)
    {
        ArgumentNullException.ThrowIfNull(mapping);
        // Upstream passes a flag (bit 3) that only kernels of ChromeOS know, and falls back to coherent memory where KVM refuses it. The
        // number of its capability means something else in Linux (KVM_CAP_PRE_FAULT_MEMORY), and the flag may, too: here every mapping
        // is coherent.
        _ = cache;
        var attempted = $"Adding 0x{mapping.Size:x} bytes at guest address {address}";
        lock (_lock)
        {
            ThrowIfDisposed();
            if (mapping.Size > long.MaxValue || address.CheckedAdd(HostPage.RoundUp(mapping.Size, HostPage.Size)) is null)
                throw new SyscallException("add_memory_region", Errno.EOVERFLOW, attempted, GuestMemoryError.InvalidGuestRegion);
            var slot = new KvmSlot(_gaps.Count > 0 ? _gaps.Min : _baseCount + _addedCount, address.Value, mapping.Memory, mapping, readOnly, logDirtyPages);
            foreach (var region in Memory.Regions)
            {
                if (region.GuestAddress <= slot.LastAddress && slot.GuestAddress <= region.LastAddress)
                    throw new SyscallException("add_memory_region", Errno.ENOSPC, attempted, GuestMemoryError.MemoryRegionOverlap, $"The base memory's region {region} lies there.");
            }

            Insert(slot, attempted);
            _gaps.Remove(slot.Slot);
            return slot.Slot;
        }
    }

    /// <inheritdoc/>
    public SlotMemory RemoveMemoryRegion(uint slot)
    {
        lock (_lock)
        {
            ThrowIfDisposed();
            var found = FindAdded(slot, Errno.ENOENT);
            var error = TrySet(found, present: false);
            if (error != 0) throw new SyscallException("ioctl(KVM_SET_USER_MEMORY_REGION)", error, $"Removing slot {slot}");
            RemoveSlot(found);
            found.Memory.RemoveHolder(this);
            return found.GetSlotMemory()!;
        }
    }

    /// <summary>
    /// Stops the vCPUs, gives the base memory back to its owner, and unmaps what was added. Returns when that is done, also where another
    /// thread has begun it.
    /// </summary>
    public void Dispose()
    {
        lock (_removal)
        {
            KvmVcpu[] vcpus;
            lock (_lock)
            {
                if (_closed) return;
                _disposed = true;
                vcpus = [.. _vcpus];
                _vcpus.Clear();
            }

            // Not under the lock: a vCPU that has filled its ring takes it before it leaves the guest.
            foreach (var vcpu in vcpus) vcpu.Dispose();
            foreach (var slot in Close())
            {
                slot.Memory.RemoveHolder(this);
                slot.GetSlotMemory()?.Dispose();
            }
        }
    }

    /// <inheritdoc/>
    public override string ToString() => $"VM {Name}";

    void IRegionHolder.Release(MmapRegion region)
    {
        lock (_lock)
        {
            if (_closed) return;
            foreach (var slot in _slots.Values.Where(slot => slot.Memory == region).ToArray())
            {
                // Other memory may be mapped at these addresses next: the guest must not reach it.
                _ = TrySet(slot, present: false);
                RemoveSlot(slot);
            }
        }
    }

    private KvmSlot[] Close()
    {
        lock (_lock)
        {
            _vm.Dispose();
            _closed = true;
            KvmSlot[] slots = [.. _slots.Values];
            _slots.Clear();
            return slots;
        }
    }

    private static void CheckRegion(GuestMemoryRegion region)
    {
        if (!HostPage.IsAligned(region.Size, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"Region {region} has 0x{region.Size:x} bytes; memory of a VM is made of whole pages of {HostPage.Size} bytes.");
        if (!HostPage.IsAligned(region.GuestAddress, HostPage.Size) || !HostPage.IsAligned(region.GetMmapRegion().HostAddress, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"Region {region} does not begin with a page; memory of a VM does.");
    }

    private void Insert(KvmSlot slot, string attempted)
    {
        slot.Memory.AddHolder(this);
        var error = TrySet(slot, present: true);
        if (error != 0)
        {
            slot.Memory.RemoveHolder(this);
            throw new SyscallException("ioctl(KVM_SET_USER_MEMORY_REGION)", error, attempted, error == Errno.EEXIST ? GuestMemoryError.MemoryRegionOverlap : GuestMemoryError.SyscallFailed, error switch
            {
                Errno.EEXIST => "Another slot lies there.",
                Errno.EINVAL when !HostPage.IsAligned(slot.GuestAddress, HostPage.Size) => $"The guest address must be a multiple of the page size, {HostPage.Size} bytes.",
                _ => null,
            });
        }

        _slots.Add(slot.Slot, slot);
        if (!slot.IsBase) _addedCount++;
    }

    private int TrySet(KvmSlot slot, bool present)
    {
        var region = new KvmUserspaceMemoryRegion
        {
            slot = slot.Slot,
            flags = (slot.ReadOnly ? KvmApi.KVM_MEM_READONLY : 0) | (slot.LogDirtyPages ? KvmApi.KVM_MEM_LOG_DIRTY_PAGES : 0),
            guest_phys_addr = slot.GuestAddress,
            memory_size = present ? slot.Size : 0,
            userspace_addr = slot.Memory.HostAddress,
        };
        return KvmApi.Try(_vm, KvmApi.KVM_SET_USER_MEMORY_REGION, ref region);
    }

    private void RemoveSlot(KvmSlot slot)
    {
        // Entries in the rings must not become marks of the next memory in this slot.
        Harvest();
        _slots.Remove(slot.Slot);
        if (slot.IsBase) return;
        _gaps.Add(slot.Slot);
        _addedCount--;
    }

    private KvmSlot FindAdded(uint slot, int error) => _slots.TryGetValue(slot, out var found) && !found.IsBase
        ? found
        : throw new SyscallException("slot", error, $"Looking for slot {slot} of {this}", GuestMemoryError.SlotNotFound, "Only memory that was added to the VM has such a slot.");

    private void ThrowIfDisposed()
    {
        if (_disposed) throw new SyscallException("ioctl", Errno.EBADF, $"Using {this}", GuestMemoryError.VmDisposed, "The VM was removed.");
    }
}
