using System.IO.Pipelines;
using System.Text;
using System.Text.Json;

namespace GuestMemory.Core.Tests;

/// <summary>A range of guest memory as a .NET stream, and as a writer of buffers.</summary>
public sealed class GuestMemoryStreamTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public void ReadsWritesAndSeeks(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000), (0x2000, 0x1000));
        using var stream = new GuestMemoryStream(memory, new GuestAddress(0x1ff0), 0x20);
        Assert.Equal((true, true, true, 0x20, 0), (stream.CanRead, stream.CanWrite, stream.CanSeek, stream.Length, stream.Position));
        stream.Write([1, 2, 3]);
        Assert.Equal(0x10, stream.Seek(-0x10, SeekOrigin.End));
        stream.WriteByte(0x42);
        stream.Write([9, 8, 7, 6], 1, 2);
        Assert.Equal((0x13L, (byte)0x42), (stream.Position, memory.ReadObject<byte>(new GuestAddress(0x2000))));
        Assert.Equal(0x11, stream.Seek(-2, SeekOrigin.Current));
        var all = new byte[0x30];
        Assert.Equal(0xf, stream.Read(all));
        Assert.Equal([8, 7, 0], all[..3]);
        Assert.Equal((0, -1, 0), (stream.Read(all), stream.ReadByte(), stream.Read(all, 0, 0)));
        stream.Position = 0x100;
        Assert.Equal(0, stream.Read(all));
        stream.Position = 0;
        Assert.Equal((0x20, 1), (stream.Read(all, 2, 0x2e), all[2]));
        Assert.Equal([0x1000UL, 0x2000], memory.Regions.SelectMany(region => region.GetDirtyBitmap().GetRanges()).Select(range => range.Address));
    }

    [Theory]
    [BackingData]
    public async Task ReadsAndWritesAsynchronously(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x200000), (0x200000, 0x1000));
        await using var stream = new GuestMemoryStream(memory, new GuestAddress(0x800), 0x200000);
        var bytes = new byte[0x200000];
        new Random(2).NextBytes(bytes);
        await new MemoryStream(bytes).CopyToAsync(stream);
        Assert.Equal(0x200000, stream.Position);
        stream.Position = 0;
        var copy = new MemoryStream();
        await stream.CopyToAsync(copy);
        Assert.True(bytes.AsSpan().SequenceEqual(copy.ToArray()));
        stream.Position = 4;
        var some = new byte[8];
        var first = await stream.ReadAsync(some, 1, 6);
        var second = await stream.ReadAsync(some.AsMemory(2));
        Assert.Equal((6, 6), (first, second));
        await stream.WriteAsync(some, 0, 8);
        await stream.FlushAsync();
        Assert.Equal(24, stream.Position);
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => stream.ReadAsync(some, 0, some.Length, new CancellationToken(canceled: true)));
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => stream.FlushAsync(new CancellationToken(canceled: true)));
        Assert.Equal(24, stream.Position);
    }

    /// <summary>What .NET builds on streams works, and what is written through it is marked.</summary>
    [Fact]
    public async Task ReadersAndWritersOfTextAndJson()
    {
        var memory = _memory.Space("anonymous", (0, 0x4000));
        using (var writer = new StreamWriter(new GuestMemoryStream(memory, new GuestAddress(0x1000), 0x100), Encoding.UTF8)) writer.Write("two\nlines");
        using (var reader = new StreamReader(new GuestMemoryStream(memory, new GuestAddress(0x1000), 12))) Assert.Equal("two\nlines", reader.ReadToEnd());
        var pipe = PipeReader.Create(new GuestMemoryStream(memory, new GuestAddress(0x1000), 12));
        var result = await pipe.ReadAtLeastAsync(12);
        Assert.Equal(12, result.Buffer.Length);
        await pipe.CompleteAsync();
        var buffers = new GuestMemoryWriter(memory, new GuestAddress(0x2ff8));
        using (var json = new Utf8JsonWriter(buffers)) JsonSerializer.Serialize(json, Enumerable.Range(0, 100));
        var length = (int)(buffers.Address.Value - 0x2ff8);
        var text = new byte[length];
        memory.ReadExact(new GuestAddress(0x2ff8), text);
        Assert.Equal(JsonSerializer.Serialize(Enumerable.Range(0, 100)), Encoding.UTF8.GetString(text));
        Assert.Equal([1, 2, 3], memory.Regions[0].GetDirtyBitmap().GetRanges().SelectMany(range => Enumerable.Range((int)(range.Address / 0x1000), (int)range.PageCount)));
    }

    [Theory]
    [BackingData]
    public void WhatDoesNotFitIsRefused(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x2000, 0x1000));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => new GuestMemoryStream(memory, new GuestAddress(0xfff), 2)));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => new GuestMemoryStream(memory, new GuestAddress(0x1000), 1)));
        Assert.Throws<ArgumentOutOfRangeException>(() => new GuestMemoryStream(memory, new GuestAddress(0), 1UL << 63));
        using var stream = new GuestMemoryStream(memory, new GuestAddress(0xff0), 0x10);
        stream.Position = 0xc;
        Assert.Throws<NotSupportedException>(() => stream.Write(new byte[5]));
        Assert.Throws<NotSupportedException>(() => stream.SetLength(5));
        Assert.Throws<ArgumentOutOfRangeException>(() => stream.Position = -1);
        Assert.Throws<IOException>(() => stream.Seek(-0xd, SeekOrigin.Current));
        Assert.Throws<IOException>(() => stream.Seek(long.MaxValue, SeekOrigin.End));
        Assert.Throws<ArgumentOutOfRangeException>(() => stream.Seek(0, (SeekOrigin)3));
        stream.Write(new byte[4]);
        stream.Write([]);
        stream.Position = 0x20;
        Assert.Throws<NotSupportedException>(() => stream.WriteByte(1));
        Assert.Equal(0x20, stream.Position);
        stream.Dispose();
        foreach (var use in (Action[])[() => stream.ReadByte(), () => stream.WriteByte(1), () => stream.Position = 0, () => _ = stream.Length, () => stream.Seek(0, SeekOrigin.Begin), () => _ = stream.ReadAsync(new byte[1])])
            Assert.Throws<ObjectDisposedException>(use);
        Assert.Equal((false, false, false), (stream.CanRead, stream.CanWrite, stream.CanSeek));
        // The memory is its owner's.
        Assert.False(memory.Regions[0].IsDisposed);
    }

    [Fact]
    public void ProtectionIsTheStreams()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x1000).WithProtection(MemoryProtection.Read).Build(), new GuestAddress(0));
        using var stream = new GuestMemoryStream(GuestMemoryMmap.FromRegions([region]), new GuestAddress(0), 0x1000);
        Assert.Equal((true, false, 0), (stream.CanRead, stream.CanWrite, stream.ReadByte()));
        Assert.Throws<NotSupportedException>(() => stream.WriteByte(1));
        region.Dispose();
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => stream.ReadByte()));
        Assert.Equal(1, stream.Position);
    }

    [Fact]
    public void AWriterStopsWhereNothingIsMapped()
    {
        var memory = _memory.Space("anonymous", (0, 0x1000));
        var writer = new GuestMemoryWriter(memory, new GuestAddress(0xffc));
        Assert.InRange(writer.GetSpan(10000).Length, 10000, int.MaxValue);
        writer.GetSpan(3)[0] = 7;
        writer.Advance(3);
        writer.Advance(0);
        Assert.Equal((new GuestAddress(0xfff), 7), (writer.Address, memory.ReadObject<byte>(new GuestAddress(0xffc))));
        Assert.Equal(GuestMemoryError.PartialBuffer, Failure.Of(() => writer.Advance(2)));
        Assert.Equal(new GuestAddress(0xfff), writer.Address);
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(-1));
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(1 << 20));
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.GetMemory(-1));
    }

    /// <summary>Through a stream a read can be left, too, and the stream stays where it was.</summary>
    [Fact]
    public async Task AReadThatWaitsIsLeft()
    {
        using var waiting = new WaitingMemory(0x1000);
        await using var stream = new GuestMemoryStream(GuestMemoryMmap.FromRegions([new GuestMemoryRegion(waiting, new GuestAddress(0))]), new GuestAddress(0), 0x1000);
        using var cancellation = new CancellationTokenSource();
        var read = stream.ReadAsync(new byte[8], cancellation.Token);
        var copy = stream.CopyToAsync(Stream.Null, cancellation.Token);
        waiting.AwaitAccess();
        waiting.AwaitAccess();
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(async () => await read);
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => copy);
        Assert.Equal(0, stream.Position);
        waiting.LetGo(2);
    }
}
