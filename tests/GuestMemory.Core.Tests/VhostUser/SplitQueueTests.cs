using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>The device's side of a split virtqueue (virtio 1.2, 2.7), and drivers that break it.</summary>
public sealed class SplitQueueTests : IDisposable
{
    private const int Count = 8;
    private const ulong Table = 0;
    private const ulong Available = 0x1000;
    private const ulong Used = 0x2000;
    private const ulong Data = 0x4000;
    private const ulong IndirectFeature = 1UL << 28;
    private const ulong EventIndexFeature = 1UL << 29;
    private const ushort Next = 1;
    private const ushort Writable = 2;
    private const ushort Indirect = 4;

    // Two regions that touch, a hole behind them, and another region.
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(0, 0x8000), (0x8000, 0x8000), (0x20000, 0x1000)]);
    private readonly SafeDescriptor _kick = EventFd.Create();
    private readonly SafeDescriptor _call = EventFd.Create();
    private ushort _available;

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _kick.Dispose();
        _call.Dispose();
    }

    [Fact]
    public void ChainsAreTakenInOrderAndReturned()
    {
        var queue = Queue();
        Assert.Null(queue.TryPop());
        Put(2, Data, 16, Next, 3);
        Put(3, Data + 0x100, 8, Next | Writable, 1);
        Put(1, Data + 0x200, 4, Writable);
        Put(5, Data + 0x300, 1);
        Offer(2, 5);
        _memory.WriteExact(Data, "0123456789abcdef"u8);
        var first = queue.TryPop()!;
        Assert.Equal((2, 16U, 12U), (first.Head, first.ReadableLength, first.WritableLength));
        Assert.Equal([new DescriptorBuffer(Data, 16)], first.Readable);
        Assert.Equal([new DescriptorBuffer(Data + 0x100, 8), new DescriptorBuffer(Data + 0x200, 4)], first.Writable);
        var read = new byte[20];
        Assert.Equal(6, first.Read(10, read));
        Assert.Equal("abcdef"u8, read.AsSpan(0, 6));
        Assert.Equal(7, first.Write(5, "ABCDEFGHI"u8));
        Assert.Equal("ABC"u8, Bytes(Data + 0x105, 3));
        Assert.Equal("DEFG"u8, Bytes(Data + 0x200, 4));
        var second = queue.TryPop()!;
        Assert.Equal(5, second.Head);
        Assert.Null(queue.TryPop());
        queue.Push(second, 0);
        queue.Push(first, 7);
        Assert.Equal([5U, 0, 2, 7], new ulong[] { 4, 8, 12, 16 }.Select(offset => _memory.ReadObject<uint>(Used + offset)));
        Assert.Equal(2, _memory.ReadObject<ushort>(Used + 2));
    }

    [Fact]
    public void RingsWrapAround()
    {
        _available = ushort.MaxValue - 3;
        _memory.WriteObject(Used + 2, _available);
        _memory.WriteObject(Available + 2, _available);
        var queue = Queue(next: _available);
        for (var i = 0; i < 20; i++)
        {
            Put(i % Count, Data, (uint)i + 1);
            Offer((ushort)(i % Count));
            var chain = queue.TryPop()!;
            Assert.Equal((i % Count, (uint)i + 1), (chain.Head, chain.ReadableLength));
            queue.Push(chain, (uint)i);
            Assert.Equal(_available, _memory.ReadObject<ushort>(Used + 2));
        }
    }

    [Fact]
    public void IndirectTablesAreFollowed()
    {
        var queue = Queue(IndirectFeature);
        Put(0, Data, 4, Next, 1);
        Put(1, 0x8ff0, 3 * 16, Indirect);
        Descriptor(0x8ff0, Data + 0x100, 5, Next, 2);
        Descriptor(0x9010, Data + 0x200, 6, Writable);
        Offer(0);
        var chain = queue.TryPop()!;
        Assert.Equal([new DescriptorBuffer(Data, 4), new DescriptorBuffer(Data + 0x100, 5)], chain.Readable);
        Assert.Equal([new DescriptorBuffer(Data + 0x200, 6)], chain.Writable);
    }

    [Fact]
    public void BuffersMayCrossRegionsThatTouch()
    {
        var queue = Queue();
        Put(0, 0x7ffe, 4, Writable);
        Offer(0);
        Assert.Equal(4, queue.TryPop()!.Write(0, "edge"u8));
        Assert.Equal("edge"u8, Bytes(0x7ffe, 4));
    }

    public static TheoryData<string, Action<SplitQueueTests>> Broken => new()
    {
        { "a loop of one", static test => test.Put(0, Data, 1, Next, 0) },
        { "a loop of all", static test => { for (var i = 0; i < Count; i++) test.Put(i, Data, 1, Next, (ushort)((i + 1) % Count)); } },
        { "a next one outside", static test => test.Put(0, Data, 1, Next, Count) },
        { "no bytes", static test => test.Put(0, Data, 0) },
        { "behind the memory", static test => test.Put(0, 0xffff, 2) },
        { "in a hole", static test => test.Put(0, 0x18000, 1) },
        { "across a hole", static test => test.Put(0, 0xf000, 0x12000) },
        { "past the last address", static test => test.Put(0, ulong.MaxValue, 2) },
        { "all addresses", static test => test.Put(0, 0, uint.MaxValue) },
        { "read behind written", static test => { test.Put(0, Data, 1, Next | Writable, 1); test.Put(1, Data, 1); } },
        { "indirect with next", static test => test.Put(0, Data, 16, Indirect | Next, 1) },
        { "indirect of no bytes", static test => test.Put(0, Data, 0, Indirect) },
        { "indirect of a part", static test => test.Put(0, Data, 17, Indirect) },
        { "indirect of too many", static test => test.Put(0, 0, 16 * (SplitQueue.MaxIndirect + 1), Indirect) },
        { "indirect outside", static test => test.Put(0, 0xfff8, 16, Indirect) },
        { "indirect in indirect", static test => { test.Put(0, Data, 32, Indirect); test.Descriptor(Data, Data, 32, Indirect); } },
        { "a loop in indirect", static test => { test.Put(0, Data, 32, Indirect); test.Descriptor(Data, Data, 1, Next, 1); test.Descriptor(Data + 16, Data, 1, Next, 0); } },
        { "indirect with next outside", static test => { test.Put(0, Data, 32, Indirect); test.Descriptor(Data, Data, 1, Next, 2); } },
    };

    [Theory]
    [MemberData(nameof(Broken))]
    public void ABrokenChainIsAnErrorAndChangesNothing(string what, Action<SplitQueueTests> put)
    {
        Assert.NotNull(what);
        var queue = Queue(IndirectFeature | EventIndexFeature);
        put(this);
        Offer(0);
        var before = Everything();
        for (var i = 0; i < 2; i++) Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.TryPop()).Error);
        Assert.Equal(before, Everything());
    }

    [Fact]
    public void IndirectTablesMustBeNegotiated()
    {
        var queue = Queue();
        Put(0, Data, 16, Indirect);
        Offer(0);
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.TryPop()).Error);
    }

    [Theory]
    [InlineData(Count + 1)]
    [InlineData(0x8000)]
    [InlineData(0xffff)]
    public void MoreChainsThanDescriptorsAreAnError(ushort index)
    {
        var queue = Queue();
        _memory.WriteObject(Available + 2, index);
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.TryPop()).Error);
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.EnableKicks()).Error);
    }

    [Fact]
    public void AHeadOutsideIsAnError()
    {
        var queue = Queue();
        Offer(Count);
        Assert.Equal(GuestMemoryError.InvalidQueue, Assert.Throws<GuestMemoryException>(() => queue.TryPop()).Error);
    }

    [Theory]
    [InlineData(0, true)]
    [InlineData(1, false)]
    public void TheGuestSaysWhetherItIsInterrupted(ushort flags, bool expected)
    {
        var queue = Queue();
        Put(0, Data, 1);
        Offer(0);
        _memory.WriteObject(Available, flags);
        queue.Signal();
        Assert.False(EventFd.Clear(_call));
        queue.Push(queue.TryPop()!, 0);
        queue.Signal();
        Assert.Equal(expected, EventFd.Clear(_call));
        queue.Signal();
        Assert.False(EventFd.Clear(_call));
    }

    [Theory]
    [InlineData(0, true)]
    [InlineData(1, true)]
    [InlineData(2, false)]
    [InlineData(0xffff, false)]
    public void TheEventIndexSaysWhenItIsInterrupted(ushort wanted, bool expected)
    {
        var queue = Queue(EventIndexFeature);
        _memory.WriteObject(Available + 4 + 2 * Count, wanted);
        Put(0, Data, 1);
        Put(1, Data, 1);
        Offer(0, 1);
        queue.Push(queue.TryPop()!, 0);
        queue.Push(queue.TryPop()!, 0);
        queue.Signal();
        Assert.Equal(expected, EventFd.Clear(_call));
    }

    [Fact]
    public void KicksAreAskedForAndSpared()
    {
        var queue = Queue();
        queue.DisableKicks();
        Assert.Equal(1, _memory.ReadObject<ushort>(Used));
        Assert.False(queue.EnableKicks());
        Assert.Equal(0, _memory.ReadObject<ushort>(Used));
        Put(0, Data, 1);
        Offer(0);
        Assert.True(queue.EnableKicks());
        queue = Queue(EventIndexFeature);
        Assert.NotNull(queue.TryPop());
        Assert.False(queue.EnableKicks());
        Assert.Equal(1, _memory.ReadObject<ushort>(Used + 4 + 8 * Count));
    }

    /// <summary>Over a connection, in a memfd that the front end marks and reads: data and used ring are in the log.</summary>
    [Fact]
    public void AllThatADeviceWritesIsLogged()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        front.Start(0, 0, flags: 1, log: 0x70000);
        using var log = Memfd(0x1000);
        front.SetLog(log, 0x20);
        front.SetLogging(true);
        var vring = front.Device.Running[0];
        // The front end's writes are not the device's.
        using (var handle = Interop.Descriptor.Duplicate(shared))
        {
            RandomAccess.Write(handle, FrontEnd.Bytes(new VringDesc { addr = 0x30ffe, len = 4, flags = Writable }), 0);
            RandomAccess.Write(handle, FrontEnd.Bytes<ushort>(0, 6, 0, 0, 0, 0, 0, 0), 0x1000);
        }

        var queue = new SplitQueue(vring);
        var chain = queue.TryPop()!;
        chain.Write(0, "data"u8);
        queue.Push(chain, 4);
        using var bits = MmapLogReg.FromFile(log, 0, 0x20);
        Assert.Equal([(0x2000UL, 0x1000UL), (0x30000UL, 0x2000UL), (0x70000UL, 0x1000UL)], bits.GetAndReset().GetRanges().Select(static range => (range.Address, range.Size)));
        Assert.Equal(6, vring.NextAvailable);
    }

    private SplitQueue Queue(ulong features = 0, ushort next = 0) => new(new VhostUserVring(0, _memory, new VhostUserVringState(Count, null, next, true, _kick, _call, null),
        new VhostUserVringAddresses(Table, Available, Used, null), features, new VhostUserLog()));

    private void Put(int index, ulong address, uint length, ushort flags = 0, ushort next = 0) => Descriptor(Table + 16 * (ulong)index, address, length, flags, next);

    private void Descriptor(ulong at, ulong address, uint length, ushort flags, ushort next = 0) =>
        _memory.WriteObject(at, new VringDesc { addr = address, len = length, flags = flags, next = next });

    private void Offer(params ushort[] heads)
    {
        foreach (var head in heads) _memory.WriteObject(Available + 4 + 2 * (ulong)(_available++ % Count), head);
        _memory.WriteObject(Available + 2, _available);
    }

    private byte[] Bytes(ulong address, int length)
    {
        var bytes = new byte[length];
        _memory.ReadExact(address, bytes);
        return bytes;
    }

    private byte[] Everything() => [.. Bytes(0, 0x10000), .. Bytes(0x20000, 0x1000)];
}
