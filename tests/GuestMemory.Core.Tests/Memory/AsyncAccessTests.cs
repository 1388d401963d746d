using System.Buffers;

namespace GuestMemory.Core.Tests;

/// <summary>Asynchronous reads and writes: at once where memory is there, and to be left where it waits.</summary>
public sealed class AsyncAccessTests : IDisposable
{
    private const int Piece = 1 << 20;
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public async Task EveryKindIsReadAndWritten(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000), (0x2000, 3 * Piece), (0x1000000, 0x1000));
        var bytes = new byte[(2 * Piece) + 0x1234];
        new Random(7).NextBytes(bytes);
        await memory.WriteExactAsync(new GuestAddress(0x1800), bytes);
        var back = new byte[bytes.Length];
        await memory.ReadExactAsync(new GuestAddress(0x1800), back);
        Assert.True(bytes.AsSpan().SequenceEqual(back));
        Assert.Equal([0x1000UL, 0x2000], memory.Regions.SelectMany(region => region.GetDirtyBitmap().GetRanges()).Select(range => range.Address));
        // The end of what is mapped, and what is not.
        Assert.Equal(0x10, await memory.ReadAsync(new GuestAddress(0x1000ff0), new byte[0x20]));
        Assert.Equal(0x10, await memory.WriteAsync(new GuestAddress(0x1000ff0), new byte[0x20]));
        Assert.Equal(0, await memory.ReadAsync(new GuestAddress(0), Memory<byte>.Empty));
        var partial = await Assert.ThrowsAsync<PartialBufferException>(async () => await memory.ReadExactAsync(new GuestAddress(0x1000ff0), new byte[0x20]));
        Assert.Equal((0x20UL, 0x10UL), (partial.Expected, partial.Completed));
        await Assert.ThrowsAsync<PartialBufferException>(async () => await memory.WriteExactAsync(new GuestAddress(0x1000ff0), new byte[0x20]));
        var unmapped = await Assert.ThrowsAsync<GuestMemoryException>(async () => await memory.ReadAsync(new GuestAddress(0x2000000), new byte[1]));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, unmapped.Error);
        await Assert.ThrowsAsync<TaskCanceledException>(async () => await memory.WriteAsync(new GuestAddress(0x1000), bytes, new CancellationToken(canceled: true)));
    }

    [Theory]
    [BackingData]
    public void ASequenceIsWrittenWhole(string backing)
    {
        var memory = _memory.Space(backing, (0x1000, 0x1000), (0x2000, 0x1000));
        var end = new Segment(new byte[] { 4, 5, 6 }, null);
        var sequence = new ReadOnlySequence<byte>(new Segment(new byte[] { 1, 2, 3 }, new Segment(Array.Empty<byte>(), end)), 0, end, 3);
        memory.WriteExact(0x1ffe, sequence);
        var back = new byte[6];
        memory.ReadExact(0x1ffe, back);
        Assert.Equal([1, 2, 3, 4, 5, 6], back);
        // Into the hole, inside a segment and at its beginning.
        foreach (var room in new[] { 4UL, 3UL })
        {
            var partial = Assert.Throws<PartialBufferException>(() => memory.WriteExact(0x3000 - room, sequence));
            Assert.Equal((6UL, room), (partial.Expected, partial.Completed));
        }

        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Assert.Throws<GuestMemoryException>(() => memory.WriteExact(0x3000, sequence)).Error);
        memory.WriteExact(0x3000, ReadOnlySequence<byte>.Empty);
    }

    /// <summary>No thread is held for memory that is simply there: the task is complete when the call returns, whatever its end.</summary>
    [Theory]
    [InlineData("anonymous")]
    [InlineData("memfd")]
    [InlineData("file")]
    [InlineData("window")]
    public void MemoryThatIsThereIsReadAtOnce(string backing)
    {
        var memory = _memory.Space(backing, (0, 4 * Piece));
        Assert.True(memory.ReadAsync(new GuestAddress(0), new byte[0x1000]).IsCompletedSuccessfully);
        Assert.True(memory.WriteAsync(new GuestAddress(0), new byte[3 * Piece]).IsCompletedSuccessfully);
        Assert.True(memory.ReadExactAsync(new GuestAddress(0), new byte[3 * Piece]).IsCompletedSuccessfully);
        Assert.True(memory.WriteExactAsync(new GuestAddress(0), new byte[1]).IsCompletedSuccessfully);
        Assert.True(memory.ReadAsync(new GuestAddress(4 * Piece), new byte[1]) is { IsCompleted: true, IsFaulted: true });
        Assert.True(memory.ReadExactAsync(new GuestAddress((4 * Piece) - 1), new byte[2]) is { IsCompleted: true, IsFaulted: true });
        Assert.True(memory.WriteAsync(new GuestAddress(0), new byte[1], new CancellationToken(canceled: true)) is { IsCompleted: true, IsCanceled: true });
    }

    /// <summary>Only the regions of the range count.</summary>
    [Fact]
    public async Task AnotherRegionThatWaitsIsNoneOfIt()
    {
        using var waiting = new WaitingMemory(0x1000);
        var memory = _memory.Space("anonymous", (0, 0x1000), (0x2000, 0x1000)).InsertRegion(new GuestMemoryRegion(waiting, new GuestAddress(0x1000)));
        Assert.True(memory.ReadAsync(new GuestAddress(0), new byte[0x1000]).IsCompletedSuccessfully);
        Assert.True(memory.WriteAsync(new GuestAddress(0x2000), new byte[0x1000]).IsCompletedSuccessfully);
        var read = memory.ReadAsync(new GuestAddress(0x800), new byte[0x1000]);
        waiting.AwaitAccess();
        Assert.False(read.IsCompleted);
        waiting.LetGo();
        Assert.Equal(0x1000, await read);
        Assert.Equal("guest-memory-access", waiting.Thread);
    }

    [Fact]
    public async Task AReadThatIsLeftTouchesTheBufferNoMore()
    {
        using var waiting = new WaitingMemory(3 * Piece);
        waiting.Bytes.Fill(0xAA);
        var memory = GuestMemoryMmap.FromRegions([new GuestMemoryRegion(waiting, new GuestAddress(0))]);
        using var cancellation = new CancellationTokenSource();
        var buffer = new byte[3 * Piece];
        var read = memory.ReadAsync(new GuestAddress(0), buffer, cancellation.Token).AsTask();
        // The first piece comes, and the second waits.
        waiting.AwaitAccess();
        waiting.LetGo();
        waiting.AwaitEnd();
        waiting.AwaitAccess();
        Assert.False(read.IsCompleted);
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => read);
        Assert.Equal((0xAA, 0xAA, 0), (buffer[0], buffer[Piece - 1], buffer[Piece]));
        buffer.AsSpan().Fill(7);
        waiting.LetGo();
        waiting.AwaitEnd();
        // A later access finds the buffer that the former had: nobody writes to it but this one.
        var second = memory.ReadAsync(new GuestAddress(0), new byte[8], CancellationToken.None).AsTask();
        waiting.AwaitAccess();
        waiting.LetGo();
        await second;
        Assert.Equal(-1, buffer.AsSpan().IndexOfAnyExcept((byte)7));
    }

    [Fact]
    public async Task AWriteThatIsLeftHasItsOwnBytes()
    {
        using var waiting = new WaitingMemory(0x1000);
        var memory = GuestMemoryMmap.FromRegions([new GuestMemoryRegion(waiting, new GuestAddress(0))]);
        using var cancellation = new CancellationTokenSource();
        byte[] source = [1, 2, 3, 4];
        var write = memory.WriteAsync(new GuestAddress(8), source, cancellation.Token).AsTask();
        waiting.AwaitAccess();
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => write);
        Array.Clear(source);
        waiting.LetGo();
        waiting.AwaitEnd();
        Assert.Equal([0, 1, 2, 3, 4, 0], waiting.Bytes[7..13].ToArray());
    }

    [Fact]
    public async Task AHandlerThatIsGoneEndsTheWait()
    {
        using var waiting = new WaitingMemory(0x1000) { Gone = "the page-fault handler of the test" };
        var memory = GuestMemoryMmap.FromRegions([new GuestMemoryRegion(waiting, new GuestAddress(0), "orphan")]);
        var failure = await Assert.ThrowsAsync<GuestMemoryException>(async () => await memory.ReadAsync(new GuestAddress(0), new byte[8]));
        Assert.Equal(GuestMemoryError.HandlerGone, failure.Error);
        failure = await Assert.ThrowsAsync<GuestMemoryException>(async () => await memory.WriteExactAsync(new GuestAddress(0), new byte[8]));
        Assert.Equal(GuestMemoryError.HandlerGone, failure.Error);
        waiting.LetGo(2);
    }

    /// <summary>The thread that calls is not the one that waits, and comes back at once.</summary>
    [Fact]
    public async Task ManyReadsWaitAtOnce()
    {
        using var waiting = new WaitingMemory(0x1000);
        waiting.Bytes.Fill(3);
        var memory = GuestMemoryMmap.FromRegions([new GuestMemoryRegion(waiting, new GuestAddress(0))]);
        var buffers = Enumerable.Range(0, 50).Select(_ => new byte[16]).ToArray();
        var reads = buffers.Select(buffer => memory.ReadAsync(new GuestAddress(0), buffer).AsTask()).ToArray();
        for (var i = 0; i < reads.Length; i++) waiting.AwaitAccess();
        Assert.DoesNotContain(reads, read => read.IsCompleted);
        waiting.LetGo(reads.Length);
        Assert.All(await Task.WhenAll(reads), count => Assert.Equal(16, count));
        Assert.All(buffers, buffer => Assert.Equal(-1, buffer.AsSpan().IndexOfAnyExcept((byte)3)));
    }

    private sealed class Segment : ReadOnlySequenceSegment<byte>
    {
        public Segment(ReadOnlyMemory<byte> memory, Segment? next)
        {
            Memory = memory;
            Next = next;
            for (var (at, index) = (this, 0L); at is not null; at = (Segment?)at.Next)
            {
                at.RunningIndex = index;
                index += at.Memory.Length;
            }
        }
    }
}
