using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md section 3 and 16.20: what a region says of itself, and what one that says little is given.</summary>
public sealed class GuestMemoryRegionTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [BackingData]
    public void EveryMember(string backing)
    {
        GuestMemoryRegion region = _memory.Region(backing, 0x10000, 0x2000);
        Assert.Equal((0x10000UL, 0x2000UL, 0x11fffUL), (region.GuestAddress, region.Size, region.LastAddress));
        Assert.Equal((true, false), (region.AddressInRange(new MemoryRegionAddress(0x1fff)), region.AddressInRange(new MemoryRegionAddress(0x2000))));
        Assert.Equal((new MemoryRegionAddress(5), null), (region.CheckAddress(new MemoryRegionAddress(5)), region.CheckAddress(new MemoryRegionAddress(0x2000))));
        Assert.Equal((new MemoryRegionAddress(0x1fff), null), (region.CheckedOffset(new MemoryRegionAddress(0xfff), 0x1000), region.CheckedOffset(new MemoryRegionAddress(0x1000), 0x1000)));
        Assert.Equal((new MemoryRegionAddress(0), null, null),
            (region.ToRegionAddress(new GuestAddress(0x10000)), region.ToRegionAddress(new GuestAddress(0xffff)), region.ToRegionAddress(new GuestAddress(0x12000))));
        if (TestMemory.HasHostAddress(backing)) Assert.Equal(region.GetHostAddress(default) + 0x1fff, region.GetHostAddress(new MemoryRegionAddress(0x1fff)));
        else Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => region.GetHostAddress(default)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetHostAddress(new MemoryRegionAddress(0x2000))));
        Assert.Equal(backing is "file" or "memfd", region.GetFileOffset() is not null);
        Assert.Equal((0x2000UL, 0x800UL), (region.AsVolatileSlice().Size, region.GetSlice(new MemoryRegionAddress(0x1800), 0x800).Size));
        Assert.Null(region.IsHugetlbfs);
        region.WriteObject(7UL, new MemoryRegionAddress(0x1000));
        Assert.Equal((true, false, 7UL), (region.GetBitmap().IsDirtyAt(0x1000), region.GetBitmap().IsDirtyAt(0), region.ReadObject<ulong>(new MemoryRegionAddress(0x1000))));
        // Guarded memory has no span.
        var guarded = TestMemory.IsGuarded(backing);
        using var readable = region.AsSlice();
        using var writable = region.AsMutSlice();
        Assert.Equal((guarded ? 0 : 0x2000, guarded ? 0 : 0x2000), (readable.Span.Length, writable.Span.Length));
        if (guarded) return;
        Assert.Equal(7, readable.Span[0x1000]);
        writable.Span[3] = 9;
        Assert.Equal((9, false), (region.ReadObject<byte>(new MemoryRegionAddress(3)), region.GetBitmap().IsDirtyAt(0)));
    }

    [Fact]
    public void ASpanEndsAtTwoGigabytes()
    {
        using var large = new GuestRegionMmap(new MmapRegionBuilder(1UL << 31).Build(), new GuestAddress(0));
        using var largest = new GuestRegionMmap(new MmapRegionBuilder((1UL << 31) - 1).Build(), new GuestAddress(0));
        using var lease = largest.AsMutSlice();
        Assert.Equal((0, int.MaxValue), (large.AsSlice().Span.Length, lease.Span.Length));
        large.WriteObject(7, new MemoryRegionAddress((1UL << 31) - 4));
        Assert.Equal(7, large.AsVolatileSlice().ReadObject<int>((1UL << 31) - 4));
    }

    /// <summary>Memory that tells only its length has no access; nothing but that is asked of it.</summary>
    [Fact]
    public void MemoryThatOverridesNothingHasNoAccess()
    {
        var region = new GuestMemoryRegion(new Bare(), new GuestAddress(0x1000), "bare");
        var (slice, memory) = (region.AsVolatileSlice(), GuestMemoryMmap.FromRegions([region]));
        Assert.Equal((0x13ffUL, true), (region.LastAddress, region.AddressInRange(default)));
        Assert.Equal((null, null, 0, 0), (region.IsHugetlbfs, region.GetFileOffset(), region.AsSlice().Span.Length, region.AsMutSlice().Span.Length));
        var source = new CursorSource(new byte[8]);
        var sink = new CursorSink(new byte[8]);
        foreach (var access in (Action[])
        [
            () => region.GetHostAddress(default),
            () => region.GetMmapRegion(),
            () => region.Read(new byte[1], default),
            () => region.Write([1], default),
            () => region.ReadExact(new byte[1], default),
            () => region.WriteExact([1], default),
            () => region.ReadObject<int>(default),
            () => region.WriteObject(1, default),
            () => region.Load<int>(default, AtomicOrdering.Relaxed),
            () => region.Store(1, default, AtomicOrdering.Relaxed),
            () => region.ReadVolatileFrom(default, ref source, 1),
            () => region.ReadExactVolatileFrom(default, ref source, 1),
            () => region.WriteVolatileTo(default, ref sink, 1),
            () => region.WriteAllVolatileTo(default, ref sink, 1),
            () => slice.PtrGuard(),
            () => slice.AlignedAsRef<int>(0),
            () => slice.GetAtomicRef<int>(0).FetchAdd(1),
            () => memory.GetHostAddress(new GuestAddress(0x1000)),
            () => memory.Read(new GuestAddress(0x1000), new byte[1]),
            () => memory.Discard(new GuestAddress(0x1000), 0x400),
        ]) Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(access));
        region.Dispose();
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.Read(new byte[1], default)));
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => GuestMemoryMmap.FromRegions([region])));
    }

    /// <summary>A region's errors are its own, with the slice's inside.</summary>
    [Theory]
    [BackingData(OddSizes = true)]
    public void TheCauseOfAnErrorIsInside(string backing)
    {
        var region = _memory.Region(backing, 0x1000, 0x400);
        region.WriteObject(0x11223344u, new MemoryRegionAddress(0x1fe));
        Assert.Equal(0x11223344u, region.ReadObject<uint>(new MemoryRegionAddress(0x1fe)));
        region.Store((ushort)5, new MemoryRegionAddress(0x300), AtomicOrdering.SeqCst);
        Assert.Equal((5, 1L), (region.Load<ushort>(new MemoryRegionAddress(0x300), AtomicOrdering.SeqCst), region.GetDirtyBitmap().DirtyCount));
        var source = new CursorSource(new byte[] { 1, 2, 3 });
        region.ReadExactVolatileFrom(new MemoryRegionAddress(0x3fd), ref source, 3);
        var buffer = new byte[4];
        var sink = new CursorSink(buffer);
        Assert.Equal(3UL, region.WriteVolatileTo(new MemoryRegionAddress(0x3fd), ref sink, 100));
        Assert.Equal([1, 2, 3, 0], buffer);
        Assert.Equal(1, region.Read(buffer, new MemoryRegionAddress(0x3ff)));
        foreach (var access in (Action[])
        [
            () => region.Read(buffer, new MemoryRegionAddress(0x400)),
            () => region.Write(buffer, new MemoryRegionAddress(0x400)),
            () => region.ReadObject<int>(new MemoryRegionAddress(0x400)),
            () => region.WriteObject(1, new MemoryRegionAddress(ulong.MaxValue)),
            () => region.Load<int>(new MemoryRegionAddress(0x3fd), AtomicOrdering.Relaxed),
            () => region.Store(1, new MemoryRegionAddress(0x1), AtomicOrdering.Relaxed),
            () => region.ReadVolatileFrom(new MemoryRegionAddress(0x401), ref source, 1),
            () => region.WriteAllVolatileTo(new MemoryRegionAddress(0x3ff), ref sink, 2),
        ])
        {
            var failure = Assert.Throws<GuestMemoryException>(access);
            Assert.Equal((GuestMemoryError.InvalidBackendAddress, true), (failure.Error, failure.InnerException is VolatileMemoryException));
        }

        Assert.Throws<PartialBufferException>(() => region.ReadExact(buffer, new MemoryRegionAddress(0x3fe)));
        Assert.Throws<PartialBufferException>(() => region.WriteExact(buffer, new MemoryRegionAddress(0x3fe)));
    }

    [Fact]
    public void V16_20_HugetlbfsIsUnknown()
    {
        Assert.Null(_memory.Region("anonymous", 0, 0x1000).IsHugetlbfs);
        Assert.Null(_memory.Region("file", 0, 0x1000).IsHugetlbfs);
    }

    [Fact]
    public unsafe void V16_20_TheStartInAFileIsKept()
    {
        var page = System.Runtime.InteropServices.NativeMemory.AlignedAlloc((nuint)HostPage.Size, (nuint)HostPage.Size);
        try
        {
            using SafeFileHandle file = File.OpenHandle(_memory.NewFile(0x3000));
            // Only around memory that is mapped already is any offset possible.
            using var raw = new GuestRegionMmap(new MmapRegionBuilder(HostPage.Size).WithRawPointer((nint)page).WithFile(file, 1234).Build(), new GuestAddress(0));
            Assert.Equal((1234UL, 1234UL), (raw.GetFileOffset()!.Start, raw.FileOffset));
        }
        finally
        {
            System.Runtime.InteropServices.NativeMemory.AlignedFree(page);
        }
    }

    private sealed class Bare() : VolatileMemory(0x400);
}
