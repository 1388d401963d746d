using System.Buffers;

namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md 16.13: sources and sinks on a slice of four bytes in memory of five.</summary>
public sealed class StreamVectorTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData("span", new byte[] { 1, 2 }, 2UL, new byte[] { 1, 2, 0, 0, 0 })]
    [BackingData("span", new byte[] { 1, 2, 3, 4 }, 4UL, new byte[] { 1, 2, 3, 4, 0 })]
    [BackingData("span", new byte[] { 5, 6, 7, 8, 9 }, 4UL, new byte[] { 5, 6, 7, 8, 0 })]
    [BackingData("cursor", new byte[] { 1, 2 }, 2UL, new byte[] { 1, 2, 0, 0, 0 })]
    [BackingData("cursor", new byte[] { 1, 2, 3, 4 }, 4UL, new byte[] { 1, 2, 3, 4, 0 })]
    [BackingData("cursor", new byte[] { 5, 6, 7, 8, 9 }, 4UL, new byte[] { 5, 6, 7, 8, 0 })]
    [BackingData("file", new byte[] { 1, 2 }, 2UL, new byte[] { 1, 2, 0, 0, 0 })]
    [BackingData("file", new byte[] { 1, 2, 3, 4 }, 4UL, new byte[] { 1, 2, 3, 4, 0 })]
    [BackingData("file", new byte[] { 5, 6, 7, 8, 9 }, 4UL, new byte[] { 5, 6, 7, 8, 0 })]
    [BackingData("stream", new byte[] { 1, 2 }, 2UL, new byte[] { 1, 2, 0, 0, 0 })]
    [BackingData("stream", new byte[] { 5, 6, 7, 8, 9 }, 4UL, new byte[] { 5, 6, 7, 8, 0 })]
    public void V16_13_Sources(string backing, string kind, byte[] bytes, ulong count, byte[] expected)
    {
        var (all, four) = Five(backing);
        Assert.Equal(count, Fill(kind, bytes, four, exact: false));
        Assert.Equal(expected, Content(all));
        // The same exactly: what a file has comes even where it is too little, a span or cursor is looked at first.
        (all, four) = Five(backing);
        if (count == 4)
        {
            Fill(kind, bytes, four, exact: true);
            Assert.Equal(expected, Content(all));
            return;
        }

        Assert.Equal(GuestMemoryError.UnexpectedEof, Failure.Of(() => Fill(kind, bytes, four, exact: true)));
        Assert.Equal(kind is "file" or "stream" ? expected : new byte[5], Content(all));
    }

    [Theory]
    [BackingData("span", 2, 2UL)]
    [BackingData("span", 4, 4UL)]
    [BackingData("span", 5, 4UL)]
    [BackingData("cursor", 2, 2UL)]
    [BackingData("cursor", 5, 4UL)]
    [BackingData("buffer", 0, 4UL)]
    [BackingData("file", 0, 4UL)]
    [BackingData("stream", 0, 4UL)]
    public void V16_13_Sinks(string backing, string kind, int room, ulong count)
    {
        var four = _memory.Slice(backing, 1, 2, 3, 4, 5).Subslice(0, 4);
        byte[] all = [1, 2, 3, 4, 0], two = [1, 2];
        var (written, content) = Drain(kind, room, four, exact: false);
        Assert.Equal(count, written);
        Assert.Equal(room == 0 ? all[..4] : room == 2 ? two : all[..room], content);
        if (count == 4)
        {
            (_, content) = Drain(kind, room, four, exact: true);
            Assert.Equal(room == 0 ? all[..4] : all[..room], content);
        }
        else
        {
            Assert.Equal(GuestMemoryError.WriteZero, Failure.Of(() => Drain(kind, room, four, exact: true)));
        }
    }

    [Theory]
    [BackingData]
    public void V16_13_WhatFitsIsWritten(string backing)
    {
        var five = _memory.Slice(backing, 1, 2, 3, 4, 5);
        var buffer = new byte[4];
        Assert.Equal(GuestMemoryError.WriteZero, Failure.Of(() =>
        {
            var sink = new SpanSink(buffer);
            five.WriteAllVolatileTo(0, ref sink, 5);
        }));
        Assert.Equal([1, 2, 3, 4], buffer);
        Array.Clear(buffer);
        var cursor = new CursorSink(buffer);
        Assert.Equal(GuestMemoryError.WriteZero, Failure.Of(() => five.WriteAllVolatileTo(0, ref cursor, 5)));
        Assert.Equal([1, 2, 3, 4], buffer);
    }

    [Theory]
    [BackingData]
    public void V16_13_ACursorMovesOn(string backing)
    {
        var (all, four) = Five(backing);
        var cursor = new CursorSource(new byte[] { 1, 2, 3, 4, 5, 6, 7 });
        Assert.Equal(4UL, four.ReadVolatileFrom(0, ref cursor, 4));
        Assert.Equal([1, 2, 3, 4, 0], Content(all));
        Assert.Equal(3UL, four.ReadVolatileFrom(0, ref cursor, 4));
        Assert.Equal([5, 6, 7, 4, 0], Content(all));
        cursor.Position = 5;
        Assert.Equal(GuestMemoryError.UnexpectedEof, Failure.Of(() => four.ReadExactVolatileFrom(0, ref cursor, 4)));
        Assert.Equal(5UL, cursor.Position);
        Assert.Equal([5, 6, 7, 4, 0], Content(all));
        cursor.Position = ulong.MaxValue;
        Assert.Equal(0UL, four.ReadVolatileFrom(0, ref cursor, 4));
    }

    [Theory]
    [BackingData]
    public void V16_13_ACursorSinkMovesOn(string backing)
    {
        var four = _memory.Slice(backing, 1, 2, 3, 4, 5).Subslice(0, 4);
        var buffer = new byte[7];
        var cursor = new CursorSink(buffer);
        Assert.Equal(4UL, four.WriteVolatileTo(0, ref cursor, 4));
        Assert.Equal(3UL, four.WriteVolatileTo(0, ref cursor, 4));
        Assert.Equal([1, 2, 3, 4, 1, 2, 3], buffer);
        Assert.Equal(0UL, four.WriteVolatileTo(0, ref cursor, 4));
        cursor.Position = ulong.MaxValue;
        Assert.Equal(0UL, four.WriteVolatileTo(0, ref cursor, 4));
    }

    [Theory]
    [BackingData]
    public void V16_13_AGrowingBufferTakesAll(string backing)
    {
        var five = _memory.Slice(backing, 1, 2, 3, 4, 5);
        var writer = new ArrayBufferWriter<byte>();
        var sink = new BufferSink(writer);
        Assert.Equal(5UL, five.WriteVolatileTo(0, ref sink, 5));
        five.WriteAllVolatileTo(1, ref sink, 2);
        Assert.Equal([1, 2, 3, 4, 5, 2, 3], writer.WrittenSpan.ToArray());
    }

    /// <summary>Section 6.1: what does not fit is an error of the exact transfers and clamped by the others.</summary>
    [Theory]
    [BackingData]
    public void V16_13_RangesOfTheSlice(string backing)
    {
        var (_, four) = Five(backing);
        var source = new CursorSource(new byte[10]);
        var sink = new CursorSink(new byte[10]);
        Assert.Equal((0UL, 1UL), (four.ReadVolatileFrom(4, ref source, 4), four.ReadVolatileFrom(3, ref source, 4)));
        Assert.Equal((0UL, 1UL), (four.WriteVolatileTo(4, ref sink, 4), four.WriteVolatileTo(3, ref sink, ulong.MaxValue)));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => four.ReadVolatileFrom(5, ref source, 0)));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => four.WriteVolatileTo(5, ref sink, 0)));
        Assert.Equal((GuestMemoryError.OutOfBounds, 5UL, 0UL), Failure.OfSlice(() => four.ReadExactVolatileFrom(1, ref source, 4)));
        Assert.Equal((GuestMemoryError.Overflow, 1UL, ulong.MaxValue), Failure.OfSlice(() => four.WriteAllVolatileTo(1, ref sink, ulong.MaxValue)));
        Assert.Equal((1UL, 1UL), (source.Position, sink.Position));
    }

    private (VolatileSlice All, VolatileSlice Four) Five(string backing)
    {
        var all = _memory.Slice(backing, new byte[5]);
        return (all, all.Subslice(0, 4));
    }

    private ulong Fill(string kind, byte[] bytes, VolatileSlice slice, bool exact)
    {
        switch (kind)
        {
            case "span":
                var span = new SpanSource(bytes);
                return From(ref span);
            case "cursor":
                var cursor = new CursorSource(bytes);
                return From(ref cursor);
            case "stream":
                var stream = new StreamAdapter(new MemoryStream(bytes));
                return From(ref stream);
            default:
                File.WriteAllBytes(_memory.Folder["source"], bytes);
                using (var handle = File.OpenHandle(_memory.Folder["source"]))
                {
                    var file = new DescriptorStream(handle);
                    return From(ref file);
                }
        }

        ulong From<TSource>(ref TSource source)
            where TSource : IReadVolatile, allows ref struct
        {
            if (!exact) return slice.ReadVolatileFrom(0, ref source, slice.Size);
            slice.ReadExactVolatileFrom(0, ref source, slice.Size);
            return slice.Size;
        }
    }

    private (ulong Written, byte[] Content) Drain(string kind, int room, VolatileSlice slice, bool exact)
    {
        var buffer = new byte[room];
        switch (kind)
        {
            case "span":
                var span = new SpanSink(buffer);
                return (To(ref span), buffer);
            case "cursor":
                var cursor = new CursorSink(buffer);
                return (To(ref cursor), buffer);
            case "buffer":
                var writer = new ArrayBufferWriter<byte>();
                var growing = new BufferSink(writer);
                return (To(ref growing), writer.WrittenSpan.ToArray());
            case "stream":
                var memory = new MemoryStream();
                var stream = new StreamAdapter(memory);
                return (To(ref stream), memory.ToArray());
            default:
                using (var handle = File.OpenHandle(_memory.Folder["sink"], FileMode.Create, FileAccess.Write))
                {
                    var file = new DescriptorStream(handle);
                    return (To(ref file), File.ReadAllBytes(_memory.Folder["sink"]));
                }
        }

        ulong To<TSink>(ref TSink sink)
            where TSink : IWriteVolatile, allows ref struct
        {
            if (!exact) return slice.WriteVolatileTo(0, ref sink, slice.Size);
            slice.WriteAllVolatileTo(0, ref sink, slice.Size);
            return slice.Size;
        }
    }

    private static byte[] Content(VolatileSlice slice)
    {
        var bytes = new byte[slice.Size];
        slice.ReadExact(0, bytes);
        return bytes;
    }

    /// <summary>A slice may be larger than anything a writer has; it is asked for pieces.</summary>
    [Fact]
    public void ABufferIsAskedForPieces()
    {
        var bytes = new byte[200_000];
        new Random(1).NextBytes(bytes);
        var writer = new CountingWriter();
        new BufferSink(writer).WriteAllVolatile(VolatileSlice.FromArray(bytes));
        Assert.InRange(writer.Largest, 1, 64 << 10);
        Assert.True(writer.Written.AsSpan().SequenceEqual(bytes));
    }

    private sealed class CountingWriter : System.Buffers.IBufferWriter<byte>
    {
        private readonly System.Buffers.ArrayBufferWriter<byte> _inner = new();

        public int Largest { get; private set; }

        public byte[] Written => _inner.WrittenSpan.ToArray();

        public void Advance(int count) => _inner.Advance(count);

        public Memory<byte> GetMemory(int sizeHint = 0) => Seen(_inner.GetMemory(sizeHint), sizeHint);

        public Span<byte> GetSpan(int sizeHint = 0) => GetMemory(sizeHint).Span;

        private Memory<byte> Seen(Memory<byte> memory, int sizeHint)
        {
            Largest = Math.Max(Largest, sizeHint);
            return memory;
        }
    }
}
