namespace GuestMemory.Core.VhostUser;

/// <summary>
/// What a virtqueue has in the inflight region: which chains were taken and not returned, in which order, so that another back end can go on
/// where this one was killed. The layout is that of split virtqueues in QEMU's docs/interop/vhost-user.rst (QueueRegionSplit), and each step
/// leaves it so that the next back end returns every chain once. The front end can write anything into it at any time.
/// </summary>
internal sealed class InflightQueue
{
    private const ushort CurrentVersion = 1;

    // QueueRegionSplit.
    private const ulong FeaturesOffset = 0;
    private const ulong VersionOffset = 8;
    private const ulong CountOffset = 10;
    private const ulong LastOffset = 12;
    private const ulong UsedOffset = 14;
    private const ulong HeaderBytes = 16;

    // DescStateSplit.
    private const ulong InFlightOffset = 0;
    private const ulong NextOffset = 6;
    private const ulong CounterOffset = 8;
    private const ulong EntryBytes = 16;

    // As other back ends lay them out, which may have made the region.
    private const ulong Alignment = 64;

    private readonly VolatileSlice _slice;
    private readonly ushort _count;
    private ulong _counter;

    /// <param name="slice">Its part of the region.</param>
    /// <param name="count">The descriptors that it has room for.</param>
    public InflightQueue(VolatileSlice slice, ushort count) => (_slice, _count) = (slice, count);

    /// <summary>The bytes of a virtqueue of so many descriptors in the region.</summary>
    public static ulong BytesFor(ushort count) => (HeaderBytes + EntryBytes * count + (Alignment - 1)) / Alignment * Alignment;

    /// <summary>
    /// Prepares it. The chains that are in flight, in the order in which they were taken; null where no back end has used it yet.
    /// </summary>
    /// <param name="index">The number of the virtqueue, for errors.</param>
    /// <param name="used">The index of the used ring.</param>
    /// <param name="size">The descriptors of the virtqueue.</param>
    /// <exception cref="GuestMemoryException">InvalidQueue: no back end leaves it so.</exception>
    public IReadOnlyList<ushort>? Recover(int index, ushort used, int size)
    {
        if (Load(VersionOffset) == 0)
        {
            Store(CountOffset, _count);
            Store(UsedOffset, used);
            Store(VersionOffset, CurrentVersion);
            return null;
        }

        var (version, features, count) = (Load(VersionOffset), _slice.Load<ulong>(FeaturesOffset, AtomicOrdering.Acquire), Load(CountOffset));
        if (version != CurrentVersion || features != 0 || count != _count)
            throw Invalid(index, $"it has version {version}, features 0x{features:x} and {count} descriptors; version {CurrentVersion}, no features and {_count} descriptors are expected");
        CompleteReturn(index, unchecked((ushort)(used - Load(UsedOffset))));
        Store(UsedOffset, used);
        var found = new List<(ulong Counter, ushort Head)>();
        for (ushort head = 0; head < _count; head++)
        {
            if (!IsInFlight(head)) continue;
            if (head >= size) throw Invalid(index, $"descriptor {head} is in flight, and the virtqueue has {size}");
            found.Add((_slice.Load<ulong>(Entry(head) + CounterOffset, AtomicOrdering.Acquire), head));
        }

        found.Sort();
        _counter = found.Count == 0 ? 0 : unchecked(found[^1].Counter + 1);
        return found.ConvertAll(static each => each.Head);
    }

    /// <summary>Notes that a chain was taken.</summary>
    public void Take(ushort head)
    {
        _slice.Store(Entry(head) + CounterOffset, _counter++, AtomicOrdering.Release);
        SetInFlight(head, 1);
    }

    /// <summary>Notes that a chain is about to be returned. The index of the used ring decides whether it was.</summary>
    public void BeginReturn(ushort head)
    {
        Store(Entry(head) + NextOffset, Load(LastOffset));
        Store(LastOffset, head);
    }

    /// <summary>Notes that a chain was returned: the used ring has the new index.</summary>
    public void EndReturn(ushort head, ushort used)
    {
        SetInFlight(head, 0);
        Store(UsedOffset, used);
    }

    /// <summary>Completes the return of the last chains, which the former back end had put into the used ring and not noted.</summary>
    private void CompleteReturn(int index, ushort batch)
    {
        if (batch > _count)
        {
            // The front end has reset the virtqueue. Nothing can be in flight then.
            for (ushort head = 0; head < _count; head++)
            {
                if (IsInFlight(head)) throw Invalid(index, $"{batch} chains were returned at once, and there are {_count} descriptors");
            }

            return;
        }

        var last = Load(LastOffset);
        for (var i = 0; i < batch; i++)
        {
            if (last >= _count) throw Invalid(index, $"descriptor {last} was returned last, and there are {_count}");
            SetInFlight(last, 0);
            last = Load(Entry(last) + NextOffset);
        }
    }

    private static ulong Entry(ushort head) => HeaderBytes + EntryBytes * head;

    private bool IsInFlight(ushort head) => _slice.Load<byte>(Entry(head) + InFlightOffset, AtomicOrdering.Acquire) == 1;

    private void SetInFlight(ushort head, byte value) => _slice.Store(Entry(head) + InFlightOffset, value, AtomicOrdering.Release);

    private ushort Load(ulong offset) => _slice.Load<ushort>(offset, AtomicOrdering.Acquire);

    private void Store(ulong offset, ushort value) => _slice.Store(offset, value, AtomicOrdering.Release);

    private static GuestMemoryException Invalid(int index, string what) => new(GuestMemoryError.InvalidQueue, $"The inflight region of virtqueue {index} is broken: {what}.");
}
