namespace GuestMemory.Core.Tests;

/// <summary>What is left of a region that was removed: errors, and nothing worse.</summary>
public sealed class RemovalTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public void EveryAccessAfterwardsIsAnError(string backing) => CheckEveryAccess(backing, 0x2000);

    [RootFact]
    public void EveryAccessAfterwardsIsAnErrorOnHugePages()
    {
        using var pool = new HugePagePoolOf(2 << 20, 2);
        CheckEveryAccess("huge", 2 << 20);
    }

    private void CheckEveryAccess(string backing, ulong size)
    {
        var memory = _memory.Space(backing, (0x1000, size));
        var region = memory.Regions[0];
        var slice = region.AsVolatileSlice();
        var accesses = EveryAccess.To(memory);
        foreach (var (_, access) in accesses) access();
        region.Dispose();
        region.GetMemory().Bitmap!.Tracker!.Reset();
        foreach (var (_, access) in accesses) Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(access));
        Assert.Equal(0UL, BitConverter.ToUInt64(region.GetMemory().Bitmap!.Tracker!.Snapshot().SelectMany(BitConverter.GetBytes).ToArray()));
        Assert.True(region.AsSlice().Span.IsEmpty && region.AsMutSlice().Span.IsEmpty);
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.GetDirtyBitmap()));
        // What needs no memory still answers.
        Assert.Equal((size - 8, size), (slice.Offset(8).Size, region.Size));
        Assert.Equal((0, 0), (slice.Read(0, []), slice.Write(0, [])));
        region.Dispose();
    }

    /// <summary>A system call works on the memory as long as the guard is held; only then it goes.</summary>
    [Theory]
    [InlineData("anonymous")]
    [InlineData("memfd")]
    [InlineData("file")]
    public unsafe void AGuardKeepsTheMemory(string backing)
    {
        var region = _memory.Region(backing, 0, 0x2000);
        var slice = region.AsVolatileSlice();
        slice.WriteObject(0x1000, 0x1122334455667788UL);
        using (var guard = slice.Offset(0x1000).PtrGuard())
        {
            region.Dispose();
            Assert.Equal(0x1122334455667788UL, *(ulong*)guard.Pointer);
        }

        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => slice.PtrGuard()));
    }

    /// <summary>The guard of an array's slice is enough to keep the array, and where it is.</summary>
    [Fact]
    public unsafe void AGuardKeepsAnArray()
    {
        using var guard = OfAnArray(out var array);
        for (var i = 0; i < 3; i++)
        {
            GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
            GC.WaitForPendingFinalizers();
        }

        Assert.True(array.IsAlive);
        Assert.Equal(0x1122334455667788UL, *(ulong*)guard.Pointer);

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        static PtrGuard OfAnArray(out WeakReference array)
        {
            ulong[] content = [0x1122334455667788];
            array = new WeakReference(content);
            return VolatileSlice.FromArray(content).PtrGuard();
        }
    }

    [Fact]
    public void ASliceKeepsItsArray()
    {
        var slice = VolatileSlice.FromArray(Enumerable.Range(0, 1000).ToArray());
        GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
        GC.WaitForPendingFinalizers();
        for (var i = 0; i < 1000; i++) Assert.Equal(i, slice.ReadObject<int>((ulong)i * 4));
    }
}
