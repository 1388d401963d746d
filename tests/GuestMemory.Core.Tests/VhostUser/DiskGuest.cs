namespace GuestMemory.Core.Tests;

/// <summary>
/// The driver of a disk in a guest: it makes requests in a virtqueue at guest address 0 unless told otherwise, and looks at their ends. A request has a slot of four
/// descriptors: header, two buffers at most, status.
/// </summary>
internal sealed class DiskGuest(GuestMemoryMmap memory, SafeDescriptor kick, SafeDescriptor call, bool eventIndex = false, ulong at = 0)
{
    public const int QueueSize = 64;
    public const ulong Table = 0;
    public const ulong Available = 0x1000;
    public const ulong Used = 0x2000;
    public const ulong Data = 0x10000;
    public const byte NoStatus = 0xff;

    private const int SlotDescriptors = 4;
    private const ulong Requests = 0x4000;
    private const ulong RequestBytes = 32;
    private const ulong StatusOffset = 16;
    private const ushort Next = 1;
    private const ushort Writable = 2;

    private ushort _available;
    private ushort _kicked;

    /// <summary>How many requests the device has returned.</summary>
    public ushort UsedIndex => memory.Load<ushort>(at + Used + 2, AtomicOrdering.Acquire);

    /// <summary>The slots of the requests that were returned, in that order; for fewer than the virtqueue has entries.</summary>
    public int[] Returned => [.. Enumerable.Range(0, UsedIndex).Select(i => (int)memory.ReadObject<VringUsedElem>(at + Used + 4 + (8 * (ulong)i)).id / SlotDescriptors)];

    /// <summary>How many bytes the device says it has written for the request that was returned last.</summary>
    public uint LastWritten => memory.ReadObject<VringUsedElem>(at + Used + 4 + (8 * (ulong)((UsedIndex - 1) % QueueSize))).len;

    public byte Status(int slot) => memory.ReadObject<byte>(Place(slot) + StatusOffset);

    /// <summary>Makes a request available.</summary>
    public void Put(int slot, uint kind, ulong sector, params (ulong Address, int Length, bool IsWritable)[] buffers)
    {
        var place = Place(slot);
        memory.WriteObject(place, new VirtioBlkOuthdr { type = kind, sector = sector });
        memory.WriteObject(place + StatusOffset, NoStatus);
        var index = slot * SlotDescriptors;
        Descriptor(index, place, 16, Next);
        foreach (var (address, length, isWritable) in buffers) Descriptor(++index, address, length, isWritable ? (ushort)(Next | Writable) : Next);
        Descriptor(++index, place + StatusOffset, 1, Writable);
        Offer((ushort)(slot * SlotDescriptors));
    }

    /// <summary>Makes a chain available, whatever it is.</summary>
    public void Offer(ushort head)
    {
        memory.WriteObject(at + Available + 4 + (2 * (ulong)(_available % QueueSize)), head);
        memory.Store(at + Available + 2, ++_available, AtomicOrdering.SeqCst);
    }

    /// <summary>Kicks, where the device wants to know, as drivers do.</summary>
    public void Kick()
    {
        Interlocked.MemoryBarrier();
        var former = _kicked;
        _kicked = _available;
        var wanted = memory.Load<ushort>(at + Used + 4 + (8 * QueueSize), AtomicOrdering.Acquire);
        var wants = eventIndex ? unchecked((ushort)(_available - wanted - 1) < (ushort)(_available - former)) : (memory.Load<ushort>(at + Used, AtomicOrdering.Acquire) & 1) == 0;
        if (wants) EventFd.Signal(kick);
    }

    /// <summary>Makes a request and waits for its end; its status.</summary>
    public byte Do(uint kind, ulong sector, params (ulong Address, int Length, bool IsWritable)[] buffers)
    {
        // With the event index it says at which end it is to be interrupted.
        memory.WriteObject(at + Available + 4 + (2 * QueueSize), _available);
        Put(0, kind, sector, buffers);
        Kick();
        Host.Until(() => UsedIndex == _available);
        Host.Until(() => EventFd.Clear(call));
        return Status(0);
    }

    /// <summary>Discards or zeroes ranges; its status.</summary>
    public byte DoRanges(uint kind, params (ulong Sector, uint Count, uint Flags)[] ranges)
    {
        for (var i = 0; i < ranges.Length; i++)
            memory.WriteObject(Data + (ulong)(i * 16), new VirtioBlkDiscardWriteZeroes { sector = ranges[i].Sector, num_sectors = ranges[i].Count, flags = ranges[i].Flags });
        return Do(kind, 0, (Data, ranges.Length * 16, false));
    }

    private void Descriptor(int index, ulong address, int length, ushort flags) =>
        memory.WriteObject(at + Table + ((ulong)index * 16), new VringDesc { addr = address, len = (uint)length, flags = flags, next = (ushort)(index + 1) });

    private ulong Place(int slot) => at + Requests + ((ulong)slot * RequestBytes);
}
