namespace GuestMemory.Core.Tests;

/// <summary>
/// The inflight region of a virtqueue (QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking"): a back end that is killed between any two
/// of its writes, and one that goes on from there. And regions that lie.
/// </summary>
public sealed class InflightQueueTests : IDisposable
{
    private const int Count = 8;
    private const ulong Table = 0;
    private const ulong Available = 0x400;
    private const ulong Used = 0x800;
    private const ulong Data = 0x1000;
    private const int MemorySize = 0x2000;

    // QueueRegionSplit.
    private const ulong Version = 8;
    private const ulong Descriptors = 10;
    private const ulong Last = 12;
    private const ulong UsedIndex = 14;
    private const ulong Entries = 16;

    private readonly SafeDescriptor _kick = EventFd.Create();
    private readonly SafeDescriptor _call = EventFd.Create();
    private readonly GuestMemoryMmap _memory;
    private readonly MmapRegion _region;
    private Action? _onWrite;

    public InflightQueueTests()
    {
        var watcher = new MarkWatcher((_, _) => _onWrite?.Invoke());
        _memory = GuestMemoryMmap.FromRegions([new GuestRegionMmap(new MmapRegionBuilder(MemorySize).WithTracker(watcher).Build(), 0)]);
        _region = new MmapRegionBuilder(InflightQueue.BytesFor(Count)).WithTracker(watcher).Build();
    }

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _region.Dispose();
        _kick.Dispose();
        _call.Dispose();
    }

    [Fact]
    public void TheLayoutIsThatOfTheProtocol()
    {
        // 16 bytes, 16 for each descriptor, in units of 64.
        Assert.Equal([64UL, 192UL, 2112UL], new ushort[] { 1, 8, 128 }.Select(InflightQueue.BytesFor));
        Offer(5, 2);
        var queue = Queue();
        Assert.Equal((1, Count, 0), (Load(Version), Load(Descriptors), Load(UsedIndex)));
        var first = queue.TryPop()!;
        queue.TryPop();
        Assert.Equal((1, 0UL, 1, 1UL), (InFlight(5), Counter(5), InFlight(2), Counter(2)));
        queue.Push(first, 0);
        Assert.Equal((0, 1, 5, 1), (InFlight(5), InFlight(2), Load(Last), Load(UsedIndex)));
    }

    [Fact]
    public void WhatIsInFlightComesFirstInItsOrder()
    {
        Offer(3, 1, 6, 4);
        var queue = Queue();
        DescriptorChain[] chains = [queue.TryPop()!, queue.TryPop()!, queue.TryPop()!];
        queue.Push(chains[1], 0);
        EventFd.Clear(_call);
        var next = Queue();
        // The guest may not know of what was returned.
        Assert.True(EventFd.Clear(_call));
        Assert.Equal([3, 6, 4], All(next).Select(static chain => chain.Head));
        // What it takes is counted on from there: 3, 6, 4 again.
        Assert.Equal([3, 6, 4], All(Queue()).Select(static chain => chain.Head));
    }

    /// <summary>
    /// Each write of the back end is a moment at which it may be killed, also while it recovers from having been killed. Whenever that is, the one
    /// after it returns each request that was not returned, and none twice.
    /// </summary>
    [Fact]
    public void DeathAfterAnyWriteLosesNothingAndDoublesNothing()
    {
        Offer(0, 1, 2, 3, 4, 5, 6, 7);
        var queue = Queue();
        foreach (var chain in All(queue)) queue.Push(chain, 1);
        // The second time around what the first has left is in the region.
        Offer(7, 3, 5, 0, 1);
        var deaths = Moments(() =>
        {
            var (first, second) = (Work(queue.TryPop()!), Work(queue.TryPop()!));
            queue.Push(second, 1);
            var third = Work(queue.TryPop()!);
            queue.Push(first, 1);
            queue.Push(third, 1);
            queue.Push(Work(queue.TryPop()!), 1);
        });
        Assert.InRange(deaths.Count, 30, 200);
        foreach (var death in deaths)
        {
            Restore(death);
            var again = Moments(GoOn);
            CheckReturned();
            foreach (var second in again)
            {
                Restore(second);
                GoOn();
                CheckReturned();
            }
        }

        void GoOn()
        {
            var next = Queue();
            foreach (var chain in All(next)) next.Push(Work(chain), 1);
        }

        void CheckReturned()
        {
            Assert.Equal(13, _memory.ReadObject<ushort>(Used + 2));
            // The entries 8 to 12 are those of the second time.
            Assert.Equal(new uint[] { 0, 1, 3, 5, 7 }, Enumerable.Range(8, 5).Select(i => _memory.ReadObject<VringUsedElem>(Used + 4 + (8 * (ulong)(i % Count))).id).Order().ToArray());
            Assert.All(Enumerable.Range(0, Count), head => Assert.Equal(0, InFlight(head)));
            Assert.Equal(13, Load(UsedIndex));
        }
    }

    /// <summary>Another back end may return several at once: the list of the last batch ends at its length, not at an end.</summary>
    [Fact]
    public void ABatchThatWasNotNotedIsCompleted()
    {
        Offer(1, 2, 3);
        All(Queue());
        // Returned together: 2, then 1. The back end was killed after it had set the index of the used ring.
        Store(Entry(2) + 6, Load(Last));
        Store(Entry(1) + 6, 2);
        Store(Last, 1);
        _memory.WriteObject<ushort>(Used + 2, 2);
        Assert.Equal([3], All(Queue()).Select(static chain => chain.Head));
        Assert.Equal((0, 0, 1, 2), (InFlight(1), InFlight(2), InFlight(3), Load(UsedIndex)));
    }

    /// <summary>The guest's driver has reset the virtqueue, and nothing was in flight: the former indices mean nothing.</summary>
    [Fact]
    public void AVirtqueueThatWasResetBeginsAnew()
    {
        Queue();
        Store(UsedIndex, 57);
        Offer(1);
        Assert.Equal([1], All(Queue()).Select(static chain => chain.Head));
        Assert.Equal(0, Load(UsedIndex));
    }

    public static TheoryData<string, Action<InflightQueueTests>> Lies => new()
    {
        { "another version", static test => test.Store(Version, 2) },
        { "features", static test => test._region.GetSlice(0, 8).Store(0, 1UL, AtomicOrdering.Release) },
        { "fewer descriptors", static test => test.Store(Descriptors, Count - 1) },
        { "more descriptors", static test => test.Store(Descriptors, ushort.MaxValue) },
        { "a return outside", static test => { test.Store(Last, Count); test._memory.WriteObject<ushort>(Used + 2, 1); } },
        { "a return outside in the list", static test => { test.Store(Last, 1); test.Store(Entry(1) + 6, 0xffff); test._memory.WriteObject<ushort>(Used + 2, 2); } },
        { "more returned than there are", static test => test._memory.WriteObject<ushort>(Used + 2, Count + 1) },
        { "a chain in flight outside", static test => { test.Store(Descriptors, Count); test.SetInFlight(6); } },
    };

    [Theory]
    [MemberData(nameof(Lies))]
    public void ARegionThatLiesIsAnError(string what, Action<InflightQueueTests> lie)
    {
        Assert.NotNull(what);
        Offer(1);
        All(Queue());
        lie(this);
        // As many as the region says, and fewer in the virtqueue itself.
        var error = Assert.Throws<GuestMemoryException>(() => Queue(size: what.StartsWith("a chain", StringComparison.Ordinal) ? 4 : Count));
        Assert.Equal(GuestMemoryError.InvalidQueue, error.Error);
        Assert.Contains("inflight region", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void AListThatLoopsEnds()
    {
        Offer(1, 2);
        All(Queue());
        Store(Last, 1);
        Store(Entry(1) + 6, 1);
        _memory.WriteObject<ushort>(Used + 2, Count);
        // As many as were returned, whatever they are; the guest's index is then behind.
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => All(Queue())).Error);
    }

    /// <summary>A counter is the front end's word, too: it decides the order alone.</summary>
    [Fact]
    public void CountersMayBeAnything()
    {
        Offer(1, 2, 3);
        All(Queue());
        foreach (var (head, counter) in new[] { (1, ulong.MaxValue), (2, 0UL), (3, ulong.MaxValue) }) _region.GetSlice(Entry(head) + 8, 8).Store(0, counter, AtomicOrdering.Release);
        Offer(4);
        Assert.Equal([2, 1, 3, 4], All(Queue()).Select(static chain => chain.Head));
    }

    [Fact]
    public void AChainThatWasNotReturnedIsNotTakenAgain()
    {
        Offer(1, 1);
        var queue = Queue();
        Assert.NotNull(queue.TryPop());
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.TryPop()).Error);
    }

    private static ulong Entry(int head) => Entries + (16 * (ulong)head);

    private static List<DescriptorChain> All(SplitQueue queue)
    {
        var all = new List<DescriptorChain>();
        while (queue.TryPop() is { } chain) all.Add(chain);
        return all;
    }

    /// <summary>What the device does with a request.</summary>
    private static DescriptorChain Work(DescriptorChain chain)
    {
        chain.Write(0, [(byte)(chain.Head + 1)]);
        return chain;
    }

    /// <summary>A back end at its start. The front end knows no more than the index of the used ring, as QEMU after the end of a back end.</summary>
    private SplitQueue Queue(int size = Count)
    {
        var state = new VhostUserVringState((ushort)size, null, _memory.ReadObject<ushort>(Used + 2), true, _kick, _call, null);
        return new SplitQueue(new VhostUserVring(0, _memory, state, new VhostUserVringAddresses(Table, Available, Used, null), 0, new VhostUserLog())
        {
            Inflight = new InflightQueue(_region.AsVolatileSlice(), Count),
        });
    }

    private void Offer(params ushort[] heads)
    {
        var index = _memory.ReadObject<ushort>(Available + 2);
        foreach (var head in heads)
        {
            _memory.WriteObject(Table + (16 * (ulong)head), new VringDesc { addr = Data + (16 * (ulong)head), len = 1, flags = 2 });
            _memory.WriteObject(Available + 4 + (2 * (ulong)(index++ % Count)), head);
        }

        _memory.WriteObject(Available + 2, index);
    }

    /// <summary>Everything that is there before an action, and after each write that it does.</summary>
    private List<byte[]> Moments(Action action)
    {
        var moments = new List<byte[]> { Everything() };
        _onWrite = () => moments.Add(Everything());
        action();
        _onWrite = null;
        return moments;
    }

    private byte[] Everything()
    {
        var bytes = new byte[MemorySize + (int)_region.Size];
        _memory.ReadExact(0, bytes.AsSpan(0, MemorySize));
        _region.AsVolatileSlice().ReadExact(0, bytes.AsSpan(MemorySize));
        return bytes;
    }

    private void Restore(byte[] bytes)
    {
        _memory.WriteExact(0, bytes.AsSpan(0, MemorySize));
        _region.AsVolatileSlice().WriteExact(0, bytes.AsSpan(MemorySize));
    }

    private int InFlight(int head) => _region.GetSlice(Entry(head), 1).ReadObject<byte>(0);

    private void SetInFlight(int head) => _region.GetSlice(Entry(head), 1).WriteObject<byte>(0, 1);

    private ulong Counter(int head) => _region.GetSlice(Entry(head) + 8, 8).ReadObject<ulong>(0);

    private int Load(ulong offset) => _region.GetSlice(offset, 2).ReadObject<ushort>(0);

    private void Store(ulong offset, int value) => _region.GetSlice(offset, 2).WriteObject(0, (ushort)value);
}
