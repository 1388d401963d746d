namespace GuestMemory.Core.Tests;

/// <summary>A guard that cannot be had is an error of the access, at any of the accesses that an operation is made of.</summary>
public sealed class FailingAccessTests
{
    private const ulong Start = 0x10000, Size = 0x2000, Page = 0x1000;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void EveryAccessFailsAtEachGuard(bool copies)
    {
        var count = EveryAccess.To(Space(copies, 1).Space).Length;
        for (var each = 0; each < count; each++)
        {
            for (var failAt = 1; ; failAt++)
            {
                var (space, memories) = Space(copies, 1);
                var memory = memories[0];
                var (name, access) = EveryAccess.To(space)[each];
                memory.FailAt = failAt;
                var failure = Record.Exception(access);
                Assert.Equal(0, memory.Pins);
                if (memory.FailAt > 0)
                {
                    // The operation has no so many accesses.
                    Assert.True(failure is null, $"{name}: {failure}");
                    Assert.True(failAt > 1, $"{name} accessed nothing");
                    break;
                }

                var error = Assert.IsAssignableFrom<GuestMemoryException>(failure);
                Assert.True(error.Error == GuestMemoryError.PageNotAccessible && error.Address is < 0x40 or >= Start and < Start + 0x40, $"{name}: {error.Error} at {error.Address:x}");
                Assert.Contains($"it is the {Errno.ENOSPC}th error", error.Message, StringComparison.Ordinal);
                // Once more, and nothing is left of it.
                access();
                Assert.Equal(0, memory.Pins);
            }
        }
    }

    [Fact]
    public void TheErrorNamesTheFirstByteThatDidNotCome()
    {
        var (space, memories) = Space(copies: true, 2);
        var region = space.Regions[1];
        memories[1].FailAt = 1;
        var failure = Assert.Throws<GuestMemoryException>(() => space.Write(new GuestAddress(Start + Size - 0x10), new byte[0x30]));
        Assert.Equal((GuestMemoryError.PageNotAccessible, Start + Size + 0x10), (failure.Error, failure.Address));
        Assert.Contains("guest address 0x12010 in region 'failing 1' cannot be written", failure.Message, StringComparison.Ordinal);
        Assert.Equal([1], Dirty(space.Regions[0]));
        Assert.Equal([0], Dirty(region));
        memories[1].FailAt = 1;
        failure = Assert.Throws<GuestMemoryException>(() => region.Read(new MemoryRegionAddress(0x100), new byte[0x30]));
        Assert.Equal((GuestMemoryError.PageNotAccessible, 0x118UL), (failure.Error, failure.Address));
    }

    /// <summary>What changed is marked, what is marked may have changed, and reads change nothing, whatever failed.</summary>
    [ModelProperty(100, typeof(FailingHistory))]
    public void NoByteChangesWithoutAMark(FailingHistory history)
    {
        var (space, memories) = Space(history.Copies, 3);
        var total = (int)Size * memories.Length;
        foreach (var step in history.Steps)
        {
            var before = All(space);
            foreach (var region in space.Regions) region.RequireTracker().Reset();
            var at = step.At % total;
            var length = Math.Min(1 + (step.Length % 0x1800), total - at);
            memories[step.Memory % memories.Length].FailAt = step.FailAt % 4;
            var isWrite = Act(step, space, (ulong)at + Start, (ulong)length);
            foreach (var memory in memories) memory.FailAt = 0;
            Assert.All(memories, memory => Assert.Equal(0, memory.Pins));
            var after = All(space);
            for (var page = 0; page < total / (int)Page; page++)
            {
                var range = (page * (int)Page)..((page + 1) * (int)Page);
                var marked = space.FindRegion(new GuestAddress(Start + (ulong)range.Start.Value))!.GetBitmap().IsDirtyAt((ulong)range.Start.Value % Size);
                if (!before.AsSpan(range).SequenceEqual(after.AsSpan(range))) Assert.True(isWrite && marked, $"page {page} changed without a mark");
                else if (marked) Assert.True(isWrite && at < range.End.Value && at + length > range.Start.Value, $"page {page} is marked and was not written");
            }
        }
    }

    /// <summary>Something on a range; whether it writes.</summary>
    private static bool Act(FailingHistory.Step step, GuestMemoryMmap space, ulong at, ulong length)
    {
        var (address, bytes) = (new GuestAddress(at), new byte[length]);
        new Random(step.Content).NextBytes(bytes);
        var way = step.Way % 10;
        var region = space.FindRegion(address)!;
        var inside = Math.Min(length, region.LastAddress - at + 1);
        try
        {
            switch (way)
            {
                case 0: space.Write(address, bytes); break;
                case 1: space.WriteExact(address, bytes, CancellationToken.None); break;
                case 2: space.GetSlice(address, inside).CopyFrom<byte>(bytes); break;
                case 3: VolatileSlice.FromArray(bytes).CopyToVolatileSlice(space.GetSlice(address, inside)); break;
                case 4:
                    var source = new CursorSource(bytes);
                    space.ReadVolatileFrom(address, ref source, length);
                    break;
                case 5: space.WriteObject(address, (byte)step.Content); break;
                case 6: space.Store(address, (byte)step.Content, AtomicOrdering.Release); break;
                case 7: space.Read(address, bytes); break;
                case 8:
                    var sink = new CursorSink(bytes);
                    space.WriteVolatileTo(address, ref sink, length);
                    break;
                default: space.GetSlice(address, inside).CopyTo(bytes); break;
            }
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.PageNotAccessible)
        {
            // That is what was asked for.
        }

        return way < 7;
    }

    private static byte[] All(GuestMemoryMmap space)
    {
        var bytes = new byte[space.Size];
        space.ReadExact(new GuestAddress(Start), bytes);
        return bytes;
    }

    private static int[] Dirty(GuestMemoryRegion region) => [.. Enumerable.Range(0, (int)(Size / Page)).Where(page => region.GetBitmap().IsDirtyAt((ulong)page * Page))];

    private static (GuestMemoryMmap Space, FailingMemory[] Memories) Space(bool copies, int count)
    {
        var memories = Enumerable.Range(0, count).Select(_ => new FailingMemory(Size, copies)).ToArray();
        foreach (var memory in memories) memory.SetTracker(new AtomicBitmap(Size, Page));
        return (GuestMemoryMmap.FromRegions(memories.Select((memory, i) => new GuestMemoryRegion(memory, new GuestAddress(Start + ((ulong)i * Size)), $"failing {i}"))), memories);
    }
}
