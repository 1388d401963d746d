namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md 16.10 and 16.11: what slices, references and arrays read, write and copy.</summary>
public sealed class VolatileAccessVectorTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public void V16_10_Bytes(string backing)
    {
        var slice = _memory.Slice(backing, new byte[5]);
        Assert.Equal(5, slice.Write(0, [1, 2, 3, 4, 5, 6]));
        Assert.Equal([1, 2, 3, 4, 5], Content(slice));
        Assert.Equal((GuestMemoryError.OutOfBounds, 5UL, 0UL), Failure.OfSlice(() => slice.Write(5, [1])));
        Assert.Equal((GuestMemoryError.OutOfBounds, 5UL, 0UL), Failure.OfSlice(() => slice.Read(5, new byte[1])));
        Assert.Equal(0, slice.Write(100, []));
        Assert.Equal(0, slice.Read(4, []));
        var empty = slice.Subslice(5, 0);
        Assert.Equal((0, 0, true), (empty.Write(1, []), empty.Read(1, []), empty.IsEmpty));
        slice.WriteExact(2, [8, 9]);
        Assert.Equal([1, 2, 8, 9, 5], Content(slice));
        var partial = Assert.Throws<PartialBufferException>(() => slice.ReadExact(3, new byte[3]));
        Assert.Equal((3UL, 2UL), (partial.Expected, partial.Completed));
    }

    [Fact]
    public void V16_10_TheSliceOfNothing()
    {
        VolatileSlice nothing = default;
        Assert.Equal((0, 0, 0UL, true), (nothing.Read(0, []), nothing.Write(7, []), nothing.Size, nothing.IsEmpty));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => default(VolatileSlice).ReadObject<byte>(0)));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => default(VolatileSlice).GetAtomicRef<byte>(0)));
        nothing.CopyToVolatileSlice(VolatileSlice.FromArray(new byte[1]));
        nothing.CopyFrom<byte>([1]);
        Assert.Equal(0, nothing.CopyTo(new byte[1]));
    }

    [Theory]
    [BackingData]
    public void V16_10_Objects(string backing)
    {
        var slice = _memory.Slice(backing, new byte[5]);
        var partial = Assert.Throws<PartialBufferException>(() => slice.WriteObject(4, (ushort)55));
        Assert.Equal((2UL, 1UL), (partial.Expected, partial.Completed));
        Assert.Equal([0, 0, 0, 0, 55], Content(slice));
        Assert.Equal((GuestMemoryError.OutOfBounds, ulong.MaxValue, 0UL), Failure.OfSlice(() => slice.WriteObject(ulong.MaxValue, (ushort)55)));
        slice.WriteObject(2, (ushort)55);
        Assert.Equal(55, slice.ReadObject<ushort>(2));
        partial = Assert.Throws<PartialBufferException>(() => slice.ReadObject<ushort>(4));
        Assert.Equal((2UL, 1UL), (partial.Expected, partial.Completed));
    }

    [Theory]
    [BackingData]
    public void V16_10_ReferencesNeedNoAlignment(string backing)
    {
        var slice = _memory.Slice(backing, 1, 2, 0xAA, 0xAA, 0xAA, 0xAA, 4);
        var reference = slice.GetRef<uint>(2);
        Assert.Equal((0xAAAAAAAA, 4UL), (reference.Load(), reference.Size));
        reference.Store(0x55555555);
        Assert.Equal([1, 2, 0x55, 0x55, 0x55, 0x55, 4], Content(slice));
        Assert.Equal([0x55, 0x55, 0x55, 0x55], Content(reference.ToSlice()));
    }

    [Theory]
    [BackingData]
    public void V16_11_CopiesOfBytes(string backing)
    {
        var source = _memory.Slice(backing, 2, 4, 6, 8, 10);
        byte[] four = new byte[4], six = new byte[6];
        Assert.Equal((4, 5), (source.CopyTo(four), source.CopyTo(six)));
        Assert.Equal([2, 4, 6, 8], four);
        Assert.Equal([2, 4, 6, 8, 10, 0], six);
        var target = _memory.Slice(backing, new byte[4]);
        target.CopyFrom<byte>([2, 4, 6, 8, 10]);
        Assert.Equal([2, 4, 6, 8], Content(target));
        target.CopyFrom<byte>([1]);
        Assert.Equal([1, 4, 6, 8], Content(target));
    }

    [Theory]
    [BackingData]
    public void V16_11_CopiesOfLargerValues(string backing)
    {
        var slice = _memory.Slice(backing, 1, 0, 2, 0, 3, 0, 4, 0, 9);
        var words = new ushort[10];
        Assert.Equal(4, slice.CopyTo(words));
        Assert.Equal([1, 2, 3, 4, 0], words[..5]);
        slice.CopyFrom<ushort>([0x0605, 0x0807, 0, 0, 0xffff]);
        Assert.Equal([5, 6, 7, 8, 0, 0, 0, 0, 9], Content(slice));
        slice.Offset(1).CopyFrom<uint>([0x44332211, 0x88776655, 7]);
        Assert.Equal([5, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88], Content(slice));
        var wide = new UInt128[1];
        Assert.Equal(0, slice.CopyTo(wide));
    }

    [Theory]
    [BackingData]
    public void V16_11_BetweenSlices(string backing)
    {
        foreach (var other in TestMemory.Backings)
        {
            var source = _memory.Slice(backing, 2, 4, 6, 8, 10);
            var target = _memory.Slice(other, new byte[4]);
            source.CopyToVolatileSlice(target);
            Assert.Equal([2, 4, 6, 8], Content(target));
            target.CopyToVolatileSlice(source.Offset(1));
            Assert.Equal([2, 2, 4, 6, 8], Content(source));
        }
    }

    /// <summary>Upwards and downwards, by less than is copied; over a megabyte in pieces, where memory is guarded.</summary>
    [Theory]
    [BackingData(3 << 20, 5)]
    [BackingData(3 << 20, (1 << 20) + 4099)]
    [BackingData(10000, 1)]
    public void SlicesMayOverlap(string backing, int length, int by)
    {
        var slice = _memory.Region(backing, 0, 5 << 20).AsVolatileSlice();
        var content = new byte[length + by];
        new Random(1).NextBytes(content);
        slice.WriteExact(0, content);
        slice.Subslice(0, (ulong)length).CopyToVolatileSlice(slice.Subslice((ulong)by, (ulong)length));
        Assert.True(content.AsSpan(0, length).SequenceEqual(Content(slice.Subslice((ulong)by, (ulong)length))));
        slice.WriteExact(0, content);
        slice.Subslice((ulong)by, (ulong)length).CopyToVolatileSlice(slice.Subslice(0, (ulong)length));
        Assert.True(content.AsSpan(by, length).SequenceEqual(Content(slice.Subslice(0, (ulong)length))));
    }

    [Theory]
    [BackingData]
    public void V16_11_Arrays(string backing)
    {
        var slice = _memory.Slice(backing, new byte[5]);
        var array = slice.GetArrayRef<byte>(1, 4);
        array.Store(1, 2);
        array.Store(2, 4);
        array.Store(3, 6);
        Assert.Equal([0, 0, 2, 4, 6], Content(slice));
        Assert.Equal((4, 6), (array.Load(2), array.RefAt(3).Load()));
        Assert.Throws<ArgumentOutOfRangeException>(() => array.Load(4));
        Assert.Throws<ArgumentOutOfRangeException>(() => array.Store(4, 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => array.RefAt(ulong.MaxValue));
        var bytes = new byte[3];
        Assert.Equal(3, array.CopyTo(bytes));
        Assert.Equal([0, 2, 4], bytes);
        array.CopyFrom([7, 8]);
        array.CopyToVolatileSlice(slice);
        Assert.Equal([7, 8, 4, 6, 6], Content(slice));
        Assert.Equal(4UL, array.ToSlice().Size);
    }

    private static byte[] Content(VolatileSlice slice)
    {
        var bytes = new byte[slice.Size];
        slice.ReadExact(0, bytes);
        return bytes;
    }
}
