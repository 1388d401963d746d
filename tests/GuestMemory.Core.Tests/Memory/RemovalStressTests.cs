using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Threads that read and write through slices while the regions are removed under them: each access either is right or says that
/// the region was removed. A signal would end the whole run, and memory that is not the region's does not hold its pattern.
/// </summary>
public sealed class RemovalStressTests
{
    private const ulong Pattern = 0xA5A5A5A5A5A5A5A5;
    private const byte PatternByte = 0xA5;
    private const int Slots = 4;

    [Theory]
    [InlineData("anonymous")]
    [InlineData("memfd")]
    [InlineData("file")]
    [InlineData("foreign")]
    public void AccessWhileRegionsGo(string backing)
    {
        using var memory = new TestMemory();
        Run(() => memory.Map(backing, 0x40000), 0x40000, 2);
    }

    [UffdFact]
    public void AccessWhileServedRegionsGo()
    {
        using var folder = new TestFolder();
        var image = folder["image"];
        File.WriteAllBytes(image, [.. Enumerable.Repeat(PatternByte, 0x10000)]);
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = folder["h.sock"], MemoryPath = image });
        Run(() =>
        {
            var mapping = new MmapRegionBuilder(0x10000).WithDirtyTracking().Build();
            UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([new GuestRegionMmap(mapping, new GuestAddress(0))]));
            return mapping;
        }, 0x10000, 2, served: true);
    }

    [RootFact]
    public void AccessWhileHugePagesGo()
    {
        using var pool = new HugePagePoolOf(2 << 20, 2 * Slots);
        using var memory = new TestMemory();
        Run(() => memory.Map("huge", 2 << 20), 2 << 20, 2);
    }

    private static void Run(Func<VolatileMemory> make, ulong size, double seconds, bool served = false)
    {
        // What the runtime takes for threads and code stays.
        Rounds(make, size, served, TimeSpan.FromSeconds(0.3));
        var (resources, before) = (Host.Resources(), Usage());
        var made = Rounds(make, size, served, Stress.Duration(seconds));
        // Descriptors are back at once, memory with the last slice.
        Host.AssertNoneLeft(resources);
        Host.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return Usage().Mappings < before.Mappings + 100;
        });
        var after = Usage();
        Assert.True(after.Mappings < before.Mappings + 100, $"{before.Mappings} mappings before, {after.Mappings} after {made} regions");
        // Neighbours can become one mapping; what all of them had together would still show.
        var all = made * (long)size >> 20;
        Assert.True(all < 1024 || after.Megabytes < before.Megabytes + (all / 2), $"{before.Megabytes} MiB before, {after.Megabytes} MiB after {all} MiB of regions");
    }

    // Not inlined: what it had in temporaries would keep the last regions.
    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static long Rounds(Func<VolatileMemory> make, ulong size, bool served, TimeSpan duration)
    {
        var regions = new VolatileMemory[Slots];
        for (var i = 0; i < Slots; i++) regions[i] = Filled(make(), size);
        long made = 0;
        var removed = 0L;
        var succeeded = 0L;
        var turn = 0;
        void Replace()
        {
            Interlocked.Increment(ref made);
            var slot = (int)(made % Slots);
            var former = regions[slot];
            Volatile.Write(ref regions[slot], Filled(make(), size));
            former.Dispose();
        }

        void Access()
        {
            var random = new Random(Interlocked.Increment(ref turn));
            var buffer = new byte[0x8000];
            var region = Volatile.Read(ref regions[random.Next(Slots)]);
            var slice = region.AsVolatileSlice();
            try
            {
                while (true)
                {
                    Touch(slice, random, buffer, size, served);
                    Interlocked.Increment(ref succeeded);
                    // A region that nobody removes must not hold the others up.
                    if (random.Next(200) == 0) break;
                }
            }
            catch (GuestMemoryException exception)
            {
                Assert.Equal(GuestMemoryError.RegionDisposed, exception.Error);
                Interlocked.Increment(ref removed);
            }
        }

        bool IsEnough() => Interlocked.Read(ref made) > Slots && Interlocked.Read(ref removed) > 0 && Interlocked.Read(ref succeeded) > Interlocked.Read(ref removed);
        Stress.Repeat(duration, IsEnough, Replace, Access, Access, Access);
        foreach (var region in regions) region.Dispose();
        Assert.True(IsEnough(), $"{made} regions, {succeeded} accesses, {removed} of removed regions");
        return made;
    }

    /// <summary>One access of some kind; what it reads must be the pattern.</summary>
    private static unsafe void Touch(VolatileSlice slice, Random random, byte[] buffer, ulong size, bool served)
    {
        var at = (ulong)random.NextInt64((long)size - buffer.Length) & ~7UL;
        switch (random.Next(12))
        {
            case 0:
                Assert.Equal(Pattern, slice.ReadObject<ulong>(at));
                break;
            case 1:
                slice.WriteObject(at, Pattern);
                break;
            case 2:
                Assert.Equal(Pattern, slice.Load<ulong>(at, AtomicOrdering.SeqCst));
                break;
            case 3:
                slice.Store(at, Pattern, AtomicOrdering.Release);
                break;
            case 4:
                Assert.Equal(Pattern, slice.GetAtomicRef<ulong>(at).CompareExchange(Pattern, Pattern));
                break;
            case 5:
                Assert.Equal(Pattern, slice.GetAtomicRef<ulong>(at).FetchOr(0));
                break;
            case 6:
                slice.ReadExact(at, buffer);
                Assert.True(buffer.AsSpan().IndexOfAnyExcept(PatternByte) < 0, "invented bytes");
                break;
            case 7:
                buffer.AsSpan().Fill(PatternByte);
                slice.WriteExact(at, buffer);
                break;
            case 8:
                var count = random.Next(1, 64);
                slice.ReadExact(at + 3, buffer.AsSpan(0, count));
                Assert.True(buffer.AsSpan(0, count).IndexOfAnyExcept(PatternByte) < 0, "invented bytes");
                break;
            case 9:
                var words = new ulong[32];
                slice.Subslice(at, 256).CopyTo(words);
                Assert.All(words, word => Assert.Equal(Pattern, word));
                break;
            case 10:
                // Only the first bytes: what another thread's copy has brought there was the pattern, or an error came of it.
                slice.GetRef<uint>(at).Store(0xA5A5A5A5);
                Assert.Equal(0xA5A5A5A5, slice.GetRef<uint>(at + 4).Load());
                break;
            default:
                // Where a handler serves, access is taken away at once, guard or not.
                if (served) break;
                using (var guard = slice.Subslice(at, 8).PtrGuard()) Assert.Equal(Pattern, *(ulong*)guard.Pointer);
                break;
        }
    }

    private static VolatileMemory Filled(VolatileMemory region, ulong size)
    {
        var bytes = new byte[size];
        bytes.AsSpan().Fill(PatternByte);
        region.AsVolatileSlice().WriteExact(0, bytes);
        return region;
    }

    /// <summary>The mappings and megabytes of this process.</summary>
    private static (int Mappings, long Megabytes) Usage() =>
        (File.ReadLines("/proc/self/maps").Count(),
            long.Parse(File.ReadLines("/proc/self/status").First(line => line.StartsWith("VmSize", StringComparison.Ordinal)).Split((char[])[' ', '\t'], StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) >> 10);
}
