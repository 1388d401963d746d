namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md 16.9 and 16.12: parts of slices, and what does not fit.</summary>
public sealed class VolatileSliceVectorTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData(0UL, 0UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(0UL, 100UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(99UL, 0UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(99UL, 1UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(100UL, 0UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(50UL, 50UL, GuestMemoryError.SyscallFailed, 0UL)]
    [BackingData(0UL, 101UL, GuestMemoryError.OutOfBounds, 101UL)]
    [BackingData(99UL, 2UL, GuestMemoryError.OutOfBounds, 101UL)]
    [BackingData(100UL, 1UL, GuestMemoryError.OutOfBounds, 101UL)]
    [BackingData(101UL, 0UL, GuestMemoryError.OutOfBounds, 101UL)]
    [BackingData(101UL, 1UL, GuestMemoryError.OutOfBounds, 102UL)]
    [BackingData(55UL, 50UL, GuestMemoryError.OutOfBounds, 105UL)]
    [BackingData(ulong.MaxValue, 2UL, GuestMemoryError.Overflow, ulong.MaxValue)]
    [BackingData(2UL, ulong.MaxValue, GuestMemoryError.Overflow, 2UL)]
    public void V16_9_Subslice(string backing, ulong offset, ulong count, GuestMemoryError error, ulong address)
    {
        var slice = _memory.Slice(backing, new byte[100]);
        // No error is written as SyscallFailed: an enumeration in an attribute has no null.
        if (error == GuestMemoryError.SyscallFailed)
        {
            Assert.Equal(count, slice.Subslice(offset, count).Size);
            Assert.Equal(offset + count, slice.ComputeEndOffset(offset, count));
            return;
        }

        var expected = (error, address, error == GuestMemoryError.Overflow ? count : 0);
        Assert.Equal(expected, Failure.OfSlice(() => slice.Subslice(offset, count)));
        Assert.Equal(expected, Failure.OfSlice(() => slice.ComputeEndOffset(offset, count)));
        if (count == 2) Assert.Equal(expected, Failure.OfSlice(() => slice.GetRef<ushort>(offset)));
    }

    [Fact]
    public void V16_9_OfOneByte() =>
        Assert.Equal((GuestMemoryError.Overflow, ulong.MaxValue, 1UL), Failure.OfSlice(() => VolatileSlice.FromArray(new byte[1]).Subslice(ulong.MaxValue, 1)));

    [Theory]
    [BackingData]
    public void V16_9_SlicesOfSlices(string backing)
    {
        var slice = _memory.Slice(backing, [.. Enumerable.Range(0, 100).Select(i => (byte)i)]);
        var inner = slice.Subslice(34, 27).Subslice(20, 5);
        Assert.Equal(5UL, inner.Size);
        var bytes = new byte[5];
        inner.ReadExact(0, bytes);
        Assert.Equal([54, 55, 56, 57, 58], bytes);
        inner.WriteExact(4, [1]);
        slice.ReadExact(55, bytes);
        Assert.Equal([55, 56, 57, 1, 59], bytes);
    }

    [Theory]
    [BackingData]
    public void V16_9_Offset(string backing)
    {
        var slice = _memory.Slice(backing, new byte[100]);
        using var guard = slice.PtrGuard();
        // Slices of memory without an address begin at 0.
        var start = TestMemory.HasHostAddress(backing) ? (ulong)guard.Pointer : 0;
        Assert.Equal((90UL, 0UL), (slice.Offset(10).Size, slice.Offset(100).Size));
        Assert.Equal((GuestMemoryError.OutOfBounds, start + 101, 0UL), Failure.OfSlice(() => slice.Offset(101)));
        Assert.Equal(start == 0 ? (GuestMemoryError.OutOfBounds, ulong.MaxValue, 0) : (GuestMemoryError.Overflow, start, ulong.MaxValue), Failure.OfSlice(() => slice.Offset(ulong.MaxValue)));
        using var moved = slice.Offset(10).PtrGuard();
        Assert.Equal(90UL, moved.Size);
        if (TestMemory.HasHostAddress(backing)) Assert.Equal(start + 10, (ulong)moved.Pointer);
    }

    [Theory]
    [BackingData(8UL)]
    [BackingData(0UL)]
    [BackingData(31UL)]
    [BackingData(32UL)]
    public void V16_9_SplitAt(string backing, ulong middle)
    {
        var slice = _memory.Slice(backing, [.. Enumerable.Range(0, 32).Select(i => (byte)i)]);
        var (first, second) = slice.SplitAt(middle);
        Assert.Equal((middle, 32 - middle), (first.Size, second.Size));
        if (!first.IsEmpty) Assert.Equal((byte)(middle - 1), first.ReadObject<byte>(middle - 1));
        if (!second.IsEmpty) Assert.Equal((byte)middle, second.ReadObject<byte>(0));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => slice.SplitAt(33)));
    }

    [Fact]
    public void V16_9_EndsOfRanges()
    {
        var slice = VolatileSlice.FromArray(new byte[5]);
        for (ulong offset = 0; offset <= 5; offset++)
        {
            for (ulong count = 0; count <= 5 - offset; count++) Assert.Equal(offset + count, slice.ComputeEndOffset(offset, count));
        }

        Assert.Equal((GuestMemoryError.OutOfBounds, 6UL, 0UL), Failure.OfSlice(() => slice.ComputeEndOffset(5, 1)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 6UL, 0UL), Failure.OfSlice(() => slice.ComputeEndOffset(6, 0)));
        Assert.Equal(7UL, VolatileSlice.ComputeOffset(3, 4));
        Assert.Equal((GuestMemoryError.Overflow, ulong.MaxValue, 1UL), Failure.OfSlice(() => VolatileSlice.ComputeOffset(ulong.MaxValue, 1)));
    }

    [Theory]
    [BackingData]
    public void V16_9_References(string backing)
    {
        var hundred = _memory.Slice(backing, new byte[100]);
        Assert.Equal((GuestMemoryError.OutOfBounds, 101UL, 0UL), Failure.OfSlice(() => hundred.GetRef<ushort>(99)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 4UL, 0UL), Failure.OfSlice(() => hundred.Subslice(0, 3).GetRef<uint>(0)));
        Assert.Equal((GuestMemoryError.TooBig, ulong.MaxValue, 4UL), Failure.OfSlice(() => hundred.GetArrayRef<uint>(4, ulong.MaxValue)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 104UL, 0UL), Failure.OfSlice(() => hundred.GetArrayRef<uint>(4, 25)));
        Assert.Equal((24UL, 4, false), (hundred.GetArrayRef<uint>(4, 24).Count, hundred.GetArrayRef<uint>(4, 24).ElementSize, hundred.GetArrayRef<uint>(4, 24).IsEmpty));
        Assert.True(hundred.GetArrayRef<uint>(100, 0).IsEmpty);

        var eight = hundred.Subslice(0, 8);
        Assert.Equal((GuestMemoryError.OutOfBounds, 9UL, 0UL), Failure.OfSlice(() => eight.GetAtomicRef<nuint>(1)));
        using var guard = hundred.PtrGuard();
        var start = TestMemory.HasHostAddress(backing) ? (ulong)guard.Pointer : 0;
        Assert.Equal((GuestMemoryError.Misaligned, start + 1, 8UL), Failure.OfSlice(() => hundred.GetAtomicRef<nuint>(1)));
        Assert.Equal((GuestMemoryError.Misaligned, start + 2, 4UL), Failure.OfSlice(() => hundred.AlignedAsMut<uint>(2)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 101UL, 0UL), Failure.OfSlice(() => hundred.AlignedAsRef<byte>(100)));
    }

    [Theory]
    [BackingData]
    public void ReferencesInPlaceAreForDirectMemory(string backing)
    {
        var slice = _memory.Slice(backing, 1, 2, 3, 4, 5, 6, 7, 8);
        if (TestMemory.IsGuarded(backing))
        {
            Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => slice.AlignedAsMut<uint>(4)));
            Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => slice.AlignedAsRef<uint>(4)));
            return;
        }

        using (var value = slice.AlignedAsRef<uint>(4)) Assert.Equal(0x08070605u, value.Value);
        using (var value = slice.AlignedAsMut<ushort>(2)) value.Value = 0x0a09;
        Assert.Equal(0x08070605_0a090201u, slice.ReadObject<ulong>(0));
        Assert.False(slice.Bitmap.IsDirtyAt(2));
    }

    /// <summary>How far a place is aligned, by what is refused.</summary>
    [Theory]
    [InlineData(9, 1)]
    [InlineData(30, 2)]
    [InlineData(12, 4)]
    [InlineData(8, 8)]
    public void V16_12_Alignment(ulong offset, ulong alignment)
    {
        var slice = _memory.Slice("anonymous", new byte[64]).Offset(offset);
        for (ulong each = 1; each <= alignment; each <<= 1) slice.CheckAlignment(each);
        Assert.Equal(GuestMemoryError.Misaligned, Failure.Of(() => slice.CheckAlignment(alignment * 2)));
        Assert.Throws<ArgumentOutOfRangeException>(() => slice.CheckAlignment(3));
        Assert.Throws<ArgumentOutOfRangeException>(() => slice.CheckAlignment(0));
    }
}
