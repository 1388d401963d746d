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
        var reference = slice.GetRef<ulong>(8);
        var odd = slice.GetRef<Guid>(3);
        var array = slice.GetArrayRef<uint>(0, 16);
        var atomic = slice.GetAtomicRef<ulong>(16);
        var other = VolatileSlice.FromArray(new byte[64]);
        var buffer = new byte[64];
        var address = new GuestAddress(0x1008);
        foreach (var access in Accesses()) access();
        region.Dispose();
        region.GetMapping().Bitmap!.Tracker!.Reset();
        foreach (var access in Accesses()) Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(access));
        Assert.Equal(0UL, BitConverter.ToUInt64(region.GetMapping().Bitmap!.Tracker!.Snapshot().SelectMany(BitConverter.GetBytes).ToArray()));
        Assert.True(region.AsSlice().IsEmpty && region.AsMutSlice().IsEmpty);
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.GetDirtyBitmap()));
        // What needs no memory still answers.
        Assert.Equal((size - 8, size), (slice.Offset(8).Size, region.Size));
        Assert.Equal((0, 0), (slice.Read([], 0), slice.Write([], 0)));
        region.Dispose();

        IEnumerable<Action> Accesses() =>
        [
            () => slice.Read(buffer, 0),
            () => slice.Write(buffer, 0),
            () => slice.ReadExact(buffer.AsSpan(0, 3), 1),
            () => slice.WriteExact(buffer.AsSpan(0, 3), 1),
            () => slice.ReadObject<byte>(0),
            () => slice.ReadObject<ulong>(8),
            () => slice.WriteObject(0UL, 8),
            () => slice.WriteObject(default(Guid), 8),
            () => slice.Load<uint>(4, AtomicOrdering.SeqCst),
            () => slice.Store(0u, 4, AtomicOrdering.SeqCst),
            () => slice.CopyTo(buffer),
            () => slice.CopyTo(new uint[4]),
            () => slice.CopyFrom<byte>(buffer),
            () => slice.CopyFrom<uint>([0, 0]),
            () => slice.CopyToVolatileSlice(other),
            () => other.CopyToVolatileSlice(slice),
            () => slice.PtrGuard().Dispose(),
            () => slice.Subslice(8, 8).ReadObject<ulong>(0),
            () => reference.Load(),
            () => reference.Store(0),
            () => odd.Load(),
            () => odd.Store(default),
            () => array.Load(3),
            () => array.Store(3, 0),
            () => array.CopyTo(new uint[16]),
            () => array.CopyFrom([0]),
            () => array.RefAt(2).Store(0),
            () => atomic.Load(AtomicOrdering.Relaxed),
            () => atomic.Store(0, AtomicOrdering.SeqCst),
            () => atomic.Exchange(0),
            () => atomic.CompareExchange(0, 0),
            () => atomic.FetchAdd(0),
            () => atomic.FetchOr(0),
            () => atomic.FetchAnd(ulong.MaxValue),
            () =>
            {
                var source = new SpanSource(buffer);
                slice.ReadVolatileFrom(0, ref source, 8);
            },
            () =>
            {
                var sink = new SpanSink(buffer);
                slice.WriteVolatileTo(0, ref sink, 8);
            },
            () =>
            {
                using var zero = File.OpenHandle("/dev/zero");
                var source = new DescriptorStream(zero);
                slice.ReadVolatileFrom(0, ref source, 8);
            },
            () => region.Read(buffer, default),
            () => region.Write(buffer, default),
            () => region.ReadObject<ulong>(default),
            () => memory.Read(address, buffer),
            () => memory.Write(address, buffer),
            () => memory.ReadObject<ulong>(address),
            () => memory.WriteObject(address, 0UL),
            () => memory.Load<ulong>(address, AtomicOrdering.Acquire),
            () => memory.ReadExact(address, buffer.AsMemory(), CancellationToken.None),
        ];
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
        slice.WriteObject(0x1122334455667788UL, 0x1000);
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
