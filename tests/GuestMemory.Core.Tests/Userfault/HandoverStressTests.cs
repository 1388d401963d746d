namespace GuestMemory.Core.Tests;

/// <summary>
/// Threads that access memory in every way while it is handed over to a handler of this process and taken away by force, over and over,
/// and while collections are forced: each access is right, or says that the region was removed. A signal would end the run; a thread
/// that waited for a page in managed code would keep the collector, and so the handler, from going on.
/// </summary>
public sealed class HandoverStressTests : IDisposable
{
    private const ulong Pattern = 0xA5A5A5A5A5A5A5A5;
    private const byte PatternByte = 0xA5;
    private const ulong Size = 4 << 20;
    private readonly TestFolder _folder = new();
    private readonly UffdHandler _handler;

    public HandoverStressTests()
    {
        File.WriteAllBytes(_folder["image"], [.. Enumerable.Repeat(PatternByte, (int)Size)]);
        _handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] });
    }

    public void Dispose()
    {
        _handler.Dispose();
        _folder.Dispose();
    }

    [UffdFact]
    public void AccessWhileMemoryIsHandedOverAndTakenAway()
    {
        var region = Map();
        var (handovers, accesses, removed, turn) = (0L, 0L, 0L, 0);
        var (duration, clock) = (Stress.Duration(6), System.Diagnostics.Stopwatch.StartNew());
        bool IsEnough() => Interlocked.Read(ref handovers) > 5 && Interlocked.Read(ref removed) > 0 && Interlocked.Read(ref accesses) > handovers;
        void HandOver()
        {
            var former = region;
            UffdRegistration.Connect(_handler.SocketPath, GuestMemoryMmap.FromRegions([former]));
            Interlocked.Increment(ref handovers);
            // Served for a while: as long as it takes to access it a few times, or until the other threads have ended.
            var target = Interlocked.Read(ref accesses) + 20;
            Host.Until(() => Interlocked.Read(ref accesses) > target || (clock.Elapsed >= duration && IsEnough()));
            Volatile.Write(ref region, Map());
            former.Dispose();
        }

        void Access()
        {
            var random = new Random(Interlocked.Increment(ref turn));
            var buffer = new byte[0x40000];
            var slice = Volatile.Read(ref region).AsVolatileSlice();
            try
            {
                while (true)
                {
                    Touch(slice, random, buffer);
                    Interlocked.Increment(ref accesses);
                    if (random.Next(200) == 0) break;
                }
            }
            catch (GuestMemoryException exception)
            {
                Assert.Equal(GuestMemoryError.RegionDisposed, exception.Error);
                Interlocked.Increment(ref removed);
            }
        }

        void Collect()
        {
            GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
            Thread.Sleep(1);
        }

        Stress.Repeat(duration, IsEnough, HandOver, Collect, Access, Access, Access, Access);
        region.Dispose();
        Assert.True(IsEnough(), $"{handovers} hand-overs, {accesses} accesses, {removed} of removed regions");
        Assert.Null(_handler.Error);
    }

    /// <summary>A page that goes and comes back in between: a single access to it must not wait for it in managed code.</summary>
    [UffdFact]
    public void SingleAccessesWhileTheirPagesAreGivenBack()
    {
        const ulong Pages = 4;
        using var region = Map();
        UffdRegistration.Connect(_handler.SocketPath, GuestMemoryMmap.FromRegions([region]));
        var slice = region.AsVolatileSlice();
        var turn = 0;
        var random = new Random(1);
        var (discards, accesses) = (0L, 0L);
        void Discard()
        {
            region.GetMmapRegion().Discard((ulong)random.Next((int)Pages) * 4096, 4096);
            Interlocked.Increment(ref discards);
        }

        void Access()
        {
            var mine = (ulong)(Interlocked.Increment(ref turn) % 8) * 8;
            for (ulong page = 0; page < Pages; page++)
            {
                var at = (page * 4096) + mine;
                AssertPatternOrZero(slice.Load<ulong>(at, AtomicOrdering.SeqCst));
                AssertPatternOrZero(slice.ReadObject<ulong>(at));
                slice.GetAtomicRef<ulong>(at).CompareExchange(Pattern, 0);
                slice.WriteObject(at, Pattern);
                Interlocked.Add(ref accesses, 4);
            }
        }

        void Collect()
        {
            GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
            Thread.Sleep(1);
        }

        bool IsEnough() => Interlocked.Read(ref discards) > 100 && Interlocked.Read(ref accesses) > 100;
        Stress.Repeat(Stress.Duration(6), IsEnough, Discard, Collect, Access, Access);
        Assert.True(IsEnough(), $"{discards} pages given back, {accesses} accesses");
        Assert.Null(_handler.Error);
    }

    private static GuestRegionMmap Map() => new(new MmapRegionBuilder(Size).WithDirtyTracking().Build(), new GuestAddress(0));

    /// <summary>One access of some kind. Before the hand-over a page is zero, and stays so where it was touched; else it is the image's.</summary>
    private static void Touch(VolatileSlice slice, Random random, byte[] buffer)
    {
        var at = (ulong)random.NextInt64((long)slice.Size - buffer.Length) & ~7UL;
        switch (random.Next(10))
        {
            case 0:
                AssertPatternOrZero(slice.ReadObject<ulong>(at));
                break;
            case 1:
                slice.WriteObject(at, Pattern);
                break;
            case 2:
                AssertPatternOrZero(slice.Load<ulong>(at, AtomicOrdering.SeqCst));
                break;
            case 3:
                slice.Store(at, Pattern, AtomicOrdering.Release);
                break;
            case 4:
                AssertPatternOrZero(slice.GetAtomicRef<ulong>(at).CompareExchange(Pattern, 0));
                break;
            case 5:
                slice.ReadExact(at, buffer);
                Assert.True(buffer.AsSpan().IndexOfAnyExcept<byte>(0, PatternByte) < 0, "invented bytes");
                break;
            case 6:
                buffer.AsSpan().Fill(PatternByte);
                slice.WriteExact(at, buffer);
                break;
            case 7:
                var count = random.Next(1, 2000);
                slice.ReadExact(at + 3, buffer.AsSpan(0, count));
                Assert.True(buffer.AsSpan(0, count).IndexOfAnyExcept<byte>(0, PatternByte) < 0, "invented bytes");
                break;
            case 8:
                var words = new ulong[buffer.Length / 8];
                slice.Subslice(at, (ulong)buffer.Length).CopyTo(words);
                Assert.True(words.AsSpan().IndexOfAnyExcept(0UL, Pattern) < 0, "invented words");
                break;
            default:
                slice.Subslice(at, (ulong)buffer.Length).CopyToVolatileSlice(VolatileSlice.FromArray(buffer));
                Assert.True(buffer.AsSpan().IndexOfAnyExcept<byte>(0, PatternByte) < 0, "invented bytes");
                break;
        }
    }

    private static void AssertPatternOrZero(ulong value)
    {
        if (value is not (0 or Pattern)) Assert.Fail($"0x{value:x}");
    }
}
