namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md 16.4 to 16.7: reads, writes, values and streams by guest address, on every kind of memory.</summary>
public sealed class GuestMemoryAccessVectorTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public void V16_4_Objects(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000));
        var unmapped = Assert.Throws<GuestMemoryException>(() => memory.WriteObject(new GuestAddress(0x2001), 1UL));
        Assert.Equal((GuestMemoryError.InvalidGuestAddress, 0x2001UL), (unmapped.Error, unmapped.Address));
        var partial = Assert.Throws<PartialBufferException>(() => memory.WriteObject(new GuestAddress(0x1ffc), 0x1122334455667788UL));
        Assert.Equal((8UL, 4UL), (partial.Expected, partial.Completed));
        Assert.Equal(0x55667788u, memory.ReadObject<uint>(new GuestAddress(0x1ffc)));
        memory.WriteObject(new GuestAddress(0x500), 0xaa55aa55aa55aa55UL);
        memory.WriteObject(new GuestAddress(0x1020), 0x55aa55aa55aa55aaUL);
        Assert.Equal((0xaa55aa55aa55aa55UL, 0x55aa55aa55aa55aaUL), (memory.ReadObject<ulong>(new GuestAddress(0x500)), memory.ReadObject<ulong>(new GuestAddress(0x1020))));
    }

    [Theory]
    [BackingData]
    public void V16_4_BytesAcrossRegions(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000));
        Assert.Equal(5, memory.Write(new GuestAddress(0xffc), [1, 2, 3, 4, 5]));
        var back = new byte[5];
        Assert.Equal(5, memory.Read(new GuestAddress(0xffc), back));
        Assert.Equal([1, 2, 3, 4, 5], back);
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_4_BytesToTheEnd(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x400));
        Assert.Equal(5, memory.Write(new GuestAddress(0x1000), [1, 2, 3, 4, 5]));
        Assert.Equal(1, memory.Write(new GuestAddress(0x13ff), [1, 2, 3, 4, 5]));
        Assert.Equal(1, memory.Read(new GuestAddress(0x13ff), new byte[5]));
    }

    [Theory]
    [BackingData(OddSizes = true)]
    public void V16_5_AStreamAcrossRegions(string backing)
    {
        var memory = _memory.Space(backing, (0, 64), (64, 64));
        var bytes = Enumerable.Range(1, 128).Select(i => (byte)i).ToArray();
        var source = new SpanSource(bytes);
        Assert.Equal(0x20UL, memory.ReadVolatileFrom(new GuestAddress(0x30), ref source, 0x20));
        Assert.Equal(96, source.Remaining.Length);
        var all = new byte[128];
        memory.ReadExact(new GuestAddress(0), all);
        Assert.Equal([.. new byte[0x30], .. bytes[..0x20], .. new byte[0x30]], all);
    }

    /// <summary>No bytes can be had anywhere, mapped or not.</summary>
    [Theory]
    [BackingData(0x1000UL)]
    [BackingData(0x1fffUL)]
    [BackingData(0x2000UL)]
    [BackingData(0UL)]
    public void V16_6_NoBytes(string backing, ulong at)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000));
        var address = new GuestAddress(at);
        var source = new SpanSource([1, 2, 3]);
        var sink = new SpanSink(new byte[3]);
        Assert.Equal((0, 0), (memory.Write(address, []), memory.Read(address, [])));
        memory.WriteExact(address, []);
        memory.ReadExact(address, []);
        Assert.Equal((0UL, 0UL), (memory.ReadVolatileFrom(address, ref source, 0), memory.WriteVolatileTo(address, ref sink, 0)));
        memory.ReadExactVolatileFrom(address, ref source, 0);
        memory.WriteAllVolatileTo(address, ref sink, 0);
        Assert.Equal((3, 3), (source.Remaining.Length, sink.Remaining.Length));
        Assert.Equal((0, 0), (memory.Regions[0].Write(new MemoryRegionAddress(at), []), memory.Regions[0].Read(new MemoryRegionAddress(at), [])));
        Assert.Empty(memory.Regions[0].GetDirtyBitmap().GetRanges());
    }

    [Theory]
    [BackingData]
    public void V16_6_Atomics(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000));
        var region = memory.Regions[0];
        var slice = region.AsVolatileSlice();
        Assert.Equal(0u, memory.Load<uint>(new GuestAddress(0x1000), AtomicOrdering.Relaxed));
        memory.Store(new GuestAddress(0x1000), 100u, AtomicOrdering.Relaxed);
        Assert.Equal(100u, memory.Load<uint>(new GuestAddress(0x1000), AtomicOrdering.Acquire));
        region.Store(new MemoryRegionAddress(0), 101u, AtomicOrdering.Release);
        Assert.Equal(101u, region.Load<uint>(new MemoryRegionAddress(0), AtomicOrdering.SeqCst));
        slice.Store(0, 102u, AtomicOrdering.SeqCst);
        Assert.Equal(102u, slice.Load<uint>(0, AtomicOrdering.Relaxed));

        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.Load<uint>(new GuestAddress(0x2000), AtomicOrdering.Relaxed)));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.Store(new GuestAddress(0x2000), 1u, AtomicOrdering.Relaxed)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.Load<uint>(new MemoryRegionAddress(0x1000), AtomicOrdering.Relaxed)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.Store(new MemoryRegionAddress(0x1000), 1u, AtomicOrdering.Relaxed)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 0x1004UL, 0UL), Failure.OfSlice(() => slice.Load<uint>(0x1000, AtomicOrdering.Relaxed)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 0x1004UL, 0UL), Failure.OfSlice(() => slice.Store(0x1000, 1u, AtomicOrdering.Relaxed)));
    }

    /// <summary>Section 6.3: an atomic access has one region.</summary>
    [Theory]
    [BackingData]
    public void V16_6_AtomicsLieInOneRegionAndAreAligned(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => memory.Load<uint>(new GuestAddress(0xffe), AtomicOrdering.Relaxed)));
        var misaligned = Assert.Throws<GuestMemoryException>(() => memory.Store(new GuestAddress(0x1002), 1u, AtomicOrdering.Relaxed));
        Assert.Equal((GuestMemoryError.InvalidBackendAddress, GuestMemoryError.Misaligned), (misaligned.Error, ((VolatileMemoryException)misaligned.InnerException!).Error));
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Load<uint>(new GuestAddress(0), AtomicOrdering.Release));
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Store(new GuestAddress(0), 1u, AtomicOrdering.Acquire));
        Assert.Throws<NotSupportedException>(() => memory.Load<UInt128>(new GuestAddress(0), AtomicOrdering.Relaxed));
        Assert.Empty(memory.Regions[1].GetDirtyBitmap().GetRanges());
    }

    [Theory]
    [BackingData]
    public void V16_7_FromZeroAndToABuffer(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000));
        var address = new GuestAddress(0x1010);
        memory.WriteObject(address, 0xffffffffu);
        using var file = File.OpenHandle("/dev/zero");
        var zero = new DescriptorStream(file);
        memory.ReadExactVolatileFrom(address, ref zero, 4);
        Assert.Equal(0u, memory.ReadObject<uint>(address));
        var buffer = new byte[] { 1, 2, 3, 4 };
        var sink = new SpanSink(buffer);
        memory.WriteAllVolatileTo(address, ref sink, 4);
        Assert.Equal([0, 0, 0, 0], buffer);
    }

    [Theory]
    [BackingData]
    public void V16_7_AnEmptyFileIsNotEnough(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000));
        using var file = File.OpenHandle(_memory.NewFile(0));
        var empty = new DescriptorStream(file);
        Assert.Equal(GuestMemoryError.PartialBuffer, Failure.Of(() => memory.ReadExactVolatileFrom(new GuestAddress(0x1010), ref empty, 4)));
        Assert.Equal(GuestMemoryError.UnexpectedEof, Failure.Of(() => memory.Regions[0].ReadExactVolatileFrom(new MemoryRegionAddress(0x10), ref empty, 4)));
        Assert.Equal(0UL, memory.ReadVolatileFrom(new GuestAddress(0x1010), ref empty, 4));
    }
}
