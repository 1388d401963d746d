using System.Runtime.CompilerServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// The device's side of a split virtqueue (virtio 1.2, section 2.7): takes descriptor chains from the available ring and returns them
/// in the used ring. The guest is not trusted: a chain is checked as it is read, and all accesses go through the VM's memory. Where the
/// front end keeps what is in flight, the chains that a back end before this one took and did not return come first, in their order. One
/// thread at a time uses it.
/// </summary>
public sealed class SplitQueue
{
    /// <summary>The features of virtqueues that it has, as bits: indirect descriptors, event index, and the layout of virtio 1.0.</summary>
    public const ulong SupportedFeatures = 1UL << Vhost.VIRTIO_RING_F_INDIRECT_DESC | 1UL << Vhost.VIRTIO_RING_F_EVENT_IDX | 1UL << Vhost.VIRTIO_F_VERSION_1;

    /// <summary>The most descriptors that an indirect table may have; more than any driver puts into one.</summary>
    public const int MaxIndirect = 1024;

    // Offsets in both rings.
    private const ulong IndexOffset = 2;
    private const ulong EntriesOffset = 4;

    private static readonly ulong s_descriptorBytes = (ulong)Unsafe.SizeOf<VringDesc>();
    private static readonly ulong s_usedBytes = (ulong)Unsafe.SizeOf<VringUsedElem>();

    private readonly VhostUserVring _vring;
    private readonly GuestMemoryMmap _memory;
    private readonly bool _indirect;
    private readonly bool _eventIndex;
    private readonly InflightQueue? _inflight;
    private readonly Queue<ushort> _resumed = [];

    // By the index of the first descriptor: whether the chain was taken and not returned.
    private readonly bool[] _taken;
    private ushort _used;
    private ushort _signalled;

    /// <param name="vring">The virtqueue. <see cref="VhostUserVring.NextAvailable"/> is kept up to date.</param>
    /// <exception cref="GuestMemoryException">InvalidQueue: what the front end has kept of requests in flight cannot be. RegionDisposed, PageNotAccessible.</exception>
    public SplitQueue(VhostUserVring vring)
    {
        ArgumentNullException.ThrowIfNull(vring);
        _vring = vring;
        _memory = vring.Memory;
        _indirect = Has(Vhost.VIRTIO_RING_F_INDIRECT_DESC);
        _eventIndex = Has(Vhost.VIRTIO_RING_F_EVENT_IDX);
        _used = Load(vring.UsedRing + IndexOffset);
        _signalled = _used;
        _taken = new bool[vring.Size];
        _inflight = vring.Inflight;
        if (_inflight?.Recover(vring.Index, _used, vring.Size) is not { } heads) return;
        foreach (var head in heads) _resumed.Enqueue(head);
        vring.NextAvailable = unchecked((ushort)(_used + heads.Count));
        // The back end before this one may have ended before it told the guest.
        vring.SignalCall();
    }

    /// <summary>Takes the next chain; null where the guest has no further one.</summary>
    /// <exception cref="GuestMemoryException">InvalidQueue: the guest has broken the virtqueue, which cannot be served any more. RegionDisposed, PageNotAccessible.</exception>
    public DescriptorChain? TryPop()
    {
        if (_resumed.Count > 0) return Take(ReadChain(_resumed.Dequeue()));
        if (Waiting == 0) return null;
        var next = _vring.NextAvailable;
        var head = _memory.ReadObject<ushort>(_vring.AvailableRing + EntriesOffset + sizeof(ushort) * (ulong)(next % _vring.Size));
        var chain = Take(ReadChain(head));
        _inflight?.Take(head);
        _vring.NextAvailable = unchecked((ushort)(next + 1));
        return chain;
    }

    /// <summary>Returns a chain to the guest, which is told by <see cref="Signal"/>.</summary>
    /// <param name="chain">The chain.</param>
    /// <param name="written">The bytes that were written to it, from its first writable one on.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public void Push(DescriptorChain chain, uint written)
    {
        ArgumentNullException.ThrowIfNull(chain);
        var head = (ushort)chain.Head;
        _inflight?.BeginReturn(head);
        var offset = EntriesOffset + s_usedBytes * (ulong)(_used % _vring.Size);
        _memory.WriteObject(_vring.UsedRing + offset, new VringUsedElem { id = (uint)chain.Head, len = written });
        _vring.MarkUsedRing(offset, s_usedBytes);
        _used = unchecked((ushort)(_used + 1));
        StoreUsed(IndexOffset, _used);
        _inflight?.EndReturn(head, _used);
        _taken[head] = false;
    }

    /// <summary>Tells the guest of the chains that were returned since the last time, unless it does not want to know.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public void Signal()
    {
        var former = _signalled;
        if (former == _used) return;
        _signalled = _used;
        // The guest writes what it wants to know of, and then looks at the used ring once more.
        Interlocked.MemoryBarrier();
        if (_eventIndex ? IsPast(Load(_vring.AvailableRing + EventOffset(sizeof(ushort))), _used, former) : (Load(_vring.AvailableRing) & Vhost.VRING_AVAIL_F_NO_INTERRUPT) == 0)
            _vring.SignalCall();
    }

    /// <summary>Has the guest kick at its next chain; returns whether there are chains already, which come without a kick.</summary>
    /// <exception cref="GuestMemoryException">InvalidQueue; RegionDisposed, PageNotAccessible.</exception>
    public bool EnableKicks()
    {
        if (_eventIndex) StoreUsed(EventOffset(s_usedBytes), _vring.NextAvailable);
        else StoreUsed(0, 0);
        Interlocked.MemoryBarrier();
        return Waiting != 0;
    }

    /// <summary>Spares the guest the kicks for a while; it may kick all the same.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public void DisableKicks()
    {
        // With the event index kicks end by themselves: it stays where it is.
        if (!_eventIndex) StoreUsed(0, Vhost.VRING_USED_F_NO_NOTIFY);
    }

    /// <summary>The virtqueue, for debuggers.</summary>
    public override string ToString() => _vring.ToString();

    /// <summary>How many chains the guest has made available that were not taken.</summary>
    private int Waiting
    {
        get
        {
            var waiting = unchecked((ushort)(Load(_vring.AvailableRing + IndexOffset) - _vring.NextAvailable));
            return waiting <= _vring.Size ? waiting : throw Invalid($"the guest has made {waiting} chains available, more than there are descriptors ({_vring.Size})");
        }
    }

    private DescriptorChain Take(DescriptorChain chain)
    {
        if (_taken[chain.Head]) throw Invalid($"the chain that begins at descriptor {chain.Head} is available again before it was returned");
        _taken[chain.Head] = true;
        return chain;
    }

    private DescriptorChain ReadChain(ushort head)
    {
        var (readable, writable) = (new List<DescriptorBuffer>(), new List<DescriptorBuffer>());
        var (table, count, inIndirect) = (_vring.DescriptorTable, (uint)_vring.Size, false);
        ulong bytes = 0;
        var left = count;
        for (uint index = head; ;)
        {
            if (index >= count) throw Invalid($"a chain names descriptor {index} of {count}");
            if (left-- == 0) throw Invalid($"the chain that begins at descriptor {head} has a loop");
            var descriptor = _memory.ReadObject<VringDesc>(table + s_descriptorBytes * index);
            if ((descriptor.flags & Vhost.VRING_DESC_F_INDIRECT) != 0)
            {
                CheckIndirect(descriptor, inIndirect);
                (table, count, inIndirect) = (descriptor.addr, descriptor.len / (uint)s_descriptorBytes, true);
                (left, index) = (count, 0);
                continue;
            }

            var isWritable = (descriptor.flags & Vhost.VRING_DESC_F_WRITE) != 0;
            if (!isWritable && writable.Count != 0) throw Invalid($"descriptor {index} is read by the device, and stands behind one that is written to");
            CheckRange(descriptor, isWritable ? MemoryProtection.Write : MemoryProtection.Read);
            bytes += descriptor.len;
            if (bytes > uint.MaxValue) throw Invalid("a chain has 4 GiB or more");
            (isWritable ? writable : readable).Add(new DescriptorBuffer(descriptor.addr, descriptor.len));
            if ((descriptor.flags & Vhost.VRING_DESC_F_NEXT) == 0) return new DescriptorChain(_memory, head, readable, writable);
            index = descriptor.next;
        }
    }

    private void CheckIndirect(VringDesc descriptor, bool inIndirect)
    {
        if (!_indirect) throw Invalid("a chain has an indirect table, which was not negotiated");
        if (inIndirect) throw Invalid("an indirect table has another one inside");
        if ((descriptor.flags & Vhost.VRING_DESC_F_NEXT) != 0) throw Invalid("a descriptor stands behind an indirect table");
        if (descriptor.len % s_descriptorBytes != 0 || descriptor.len / s_descriptorBytes > MaxIndirect)
            throw Invalid($"an indirect table has {descriptor.len} bytes; a multiple of {s_descriptorBytes} for at most {MaxIndirect} descriptors is expected");
        CheckRange(descriptor, MemoryProtection.Read);
    }

    private void CheckRange(VringDesc descriptor, MemoryProtection access)
    {
        if (descriptor.len == 0) throw Invalid("a descriptor has no bytes");
        if (!_memory.CheckRange(descriptor.addr, descriptor.len, access))
            throw Invalid($"a descriptor has 0x{descriptor.len:x} bytes at guest address 0x{descriptor.addr:x}, which is not all memory");
    }

    private ushort Load(GuestAddress address) => _memory.Load<ushort>(address, AtomicOrdering.Acquire);

    private void StoreUsed(ulong offset, ushort value)
    {
        _memory.Store(_vring.UsedRing + offset, value, AtomicOrdering.Release);
        _vring.MarkUsedRing(offset, sizeof(ushort));
    }

    /// <summary>Where the event index stands: behind the entries of the ring.</summary>
    private ulong EventOffset(ulong entryBytes) => EntriesOffset + entryBytes * (ulong)_vring.Size;

    private bool Has(int bit) => (_vring.Features >> bit & 1) != 0;

    /// <summary>Whether an index that the guest asked for lies among the entries that were added (vring_need_event).</summary>
    private static bool IsPast(ushort wanted, ushort now, ushort before) => unchecked((ushort)(now - wanted - 1) < (ushort)(now - before));

    private GuestMemoryException Invalid(string what) => new(GuestMemoryError.InvalidQueue, $"Virtqueue {_vring.Index} is broken: {what}.");
}
