using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>A span, or a reference, and the memory that it shows: the one never outlives the other.</summary>
public sealed class SpanLeaseTests
{
    /// <summary>Nothing refers to the region any more, but its memory is still in use.</summary>
    [Theory]
    [InlineData("span")]
    [InlineData("read-only span")]
    [InlineData("reference")]
    [InlineData("read-only reference")]
    public void ALeaseKeepsMemoryThatNothingElseRefersTo(string way)
    {
        Assert.False(IsMapped());
        Use(way);
        // What nobody leases goes.
        Host.Until(() =>
        {
            Collect();
            return !IsMapped();
        });
        Assert.False(IsMapped());
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Use(string way)
    {
        switch (way)
        {
            case "span":
                using (var lease = Abandoned().AsMutSlice())
                {
                    Collect();
                    Assert.True(IsMapped());
                    lease.Span[0x1fff] = 7;
                    Assert.Equal((7, 0x2000), (lease.Span[0x1fff], lease.Span.Length));
                }

                break;
            case "read-only span":
                using (var lease = Abandoned().AsSlice())
                {
                    Collect();
                    Assert.True(IsMapped());
                    Assert.Equal((3, 0x2000), (lease.Span[0x1000], lease.Span.Length));
                }

                break;
            case "reference":
                using (var lease = Abandoned().AsVolatileSlice().AlignedAsMut<ulong>(0x1000))
                {
                    Collect();
                    Assert.True(IsMapped());
                    lease.Value++;
                    Assert.Equal(4UL, lease.Value);
                }

                break;
            default:
                using (var lease = Abandoned().AsVolatileSlice().AlignedAsRef<ulong>(0x1000))
                {
                    Collect();
                    Assert.True(IsMapped());
                    Assert.Equal(3UL, lease.Value);
                }

                break;
        }
    }

    /// <summary>The region is gone for everybody else, but a span over it still shows its content.</summary>
    [Fact]
    public void ALeaseKeepsTheContentOfARegionThatIsReleased()
    {
        var region = Abandoned();
        using (var lease = region.AsMutSlice())
        {
            region.Dispose();
            Assert.Equal(3, lease.Span[0x1000]);
            Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.ReadObject<ulong>(default)));
            Assert.True(region.AsSlice().Span.IsEmpty);
            Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.AsVolatileSlice().AlignedAsMut<ulong>(0)));
            Assert.True(IsMapped());
        }

        Assert.False(IsMapped());
    }

    /// <summary>A page behind the span would be missing: the code that uses it could wait for ever.</summary>
    [UffdFact]
    public void MemoryIsNotHandedOverUnderASpan()
    {
        using var folder = new TestFolder();
        using var listener = UnixListener.Open(folder["h.sock"], null, force: false);
        using var region = Abandoned();
        using var other = Abandoned();
        var memory = GuestMemoryMmap.FromRegions([region, new GuestRegionMmap(other.GetMmapRegion(), new GuestAddress(0x10000))]);
        using (var lease = other.AsVolatileSlice().AlignedAsMut<ulong>(8))
        {
            Assert.Equal(GuestMemoryError.RegionInUse, Failure.Of(() => UffdRegistration.Connect(folder["h.sock"], memory)));
            // As before, all of them.
            Assert.Equal((false, false), (region.GetMemory().IsGuarded, other.GetMemory().IsGuarded));
            lease.Value = 7;
        }

        UffdRegistration.Connect(folder["h.sock"], memory);
        Assert.True(region.GetMemory().IsGuarded);
        Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => other.AsVolatileSlice().AlignedAsMut<ulong>(8)));
        Assert.Equal(7UL, other.ReadObject<ulong>(new MemoryRegionAddress(8)));
    }

    [Fact]
    public void AnArrayIsLeasedToo()
    {
        using var lease = VolatileSlice.FromArray(new[] { 1, 2, 3 }).AlignedAsMut<int>(4);
        Collect();
        Assert.Equal(2, lease.Value);
    }

    // Not inlined, so that no local of the caller refers to the region.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static GuestRegionMmap Abandoned()
    {
        var region = new GuestRegionMmap(new MmapRegionBuilder(0x2000).WithMemfd().Build(), new GuestAddress(0));
        region.WriteObject(new MemoryRegionAddress(0x1000), 3UL);
        return region;
    }

    private static void Collect()
    {
        for (var i = 0; i < 3; i++)
        {
            GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
            GC.WaitForPendingFinalizers();
        }
    }

    private static bool IsMapped() => File.ReadAllText("/proc/self/maps").Contains("guest_mem", StringComparison.Ordinal);
}
