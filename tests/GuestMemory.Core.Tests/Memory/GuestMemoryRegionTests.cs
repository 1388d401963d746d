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
        Assert.Equal(region.GetHostAddress(default) + 0x1fff, region.GetHostAddress(new MemoryRegionAddress(0x1fff)));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetHostAddress(new MemoryRegionAddress(0x2000))));
        Assert.Equal(backing is "file" or "memfd", region.GetFileOffset() is not null);
        Assert.Equal((0x2000UL, 0x800UL), (region.AsVolatileSlice().Size, region.GetSlice(new MemoryRegionAddress(0x1800), 0x800).Size));
        Assert.Null(region.IsHugetlbfs);
        region.WriteObject(7UL, new MemoryRegionAddress(0x1000));
        Assert.Equal((true, false, 7UL), (region.GetBitmap().IsDirtyAt(0x1000), region.GetBitmap().IsDirtyAt(0), region.ReadObject<ulong>(new MemoryRegionAddress(0x1000))));
        // Guarded memory has no span.
        var guarded = backing is "file" or "served";
        Assert.Equal((guarded ? 0 : 0x2000, guarded ? 0 : 0x2000), (region.AsSlice().Length, region.AsMutSlice().Length));
        if (guarded) return;
        Assert.Equal(7, region.AsSlice()[0x1000]);
        region.AsMutSlice()[3] = 9;
        Assert.Equal((9, false), (region.ReadObject<byte>(new MemoryRegionAddress(3)), region.GetBitmap().IsDirtyAt(0)));
    }

    [Fact]
    public void ASpanEndsAtTwoGigabytes()
    {
        using var large = new GuestRegionMmap(new MmapRegionBuilder(1UL << 31).Build(), new GuestAddress(0));
        using var largest = new GuestRegionMmap(new MmapRegionBuilder((1UL << 31) - 1).Build(), new GuestAddress(0));
        Assert.Equal((0, int.MaxValue), (large.AsSlice().Length, largest.AsMutSlice().Length));
        large.WriteObject(7, new MemoryRegionAddress((1UL << 31) - 4));
        Assert.Equal(7, large.AsVolatileSlice().ReadObject<int>((1UL << 31) - 4));
    }

    /// <summary>A region that tells only where it lies has no access; nothing but that is asked of it.</summary>
    [Fact]
    public void WithoutSlicesThereIsNoAccess()
    {
        GuestMemoryRegion region = new Bare();
        Assert.Equal((0x13ffUL, true), (region.LastAddress, region.AddressInRange(default)));
        Assert.Equal((null, null, 0, 0), (region.IsHugetlbfs, region.GetFileOffset(), region.AsSlice().Length, region.AsMutSlice().Length));
        var source = new CursorSource(new byte[8]);
        var sink = new CursorSink(new byte[8]);
        foreach (var access in (Action[])
        [
            () => region.GetHostAddress(default),
            () => region.GetSlice(default, 1),
            () => region.AsVolatileSlice(),
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
        ]) Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(access));
    }

    /// <summary>With slices everything works, over any memory; its errors are a region's, with the cause inside.</summary>
    [Fact]
    public void WithSlicesEverythingWorks()
    {
        var bitmap = new AtomicBitmap(0x400, 0x100);
        GuestMemoryRegion region = new OverAnArray(bitmap);
        region.WriteObject(0x11223344u, new MemoryRegionAddress(0x1fe));
        Assert.Equal((0x11223344u, 2L), (region.ReadObject<uint>(new MemoryRegionAddress(0x1fe)), bitmap.CountDirty()));
        region.Store((ushort)5, new MemoryRegionAddress(0x300), AtomicOrdering.SeqCst);
        Assert.Equal((5, 3L), (region.Load<ushort>(new MemoryRegionAddress(0x300), AtomicOrdering.SeqCst), bitmap.CountDirty()));
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

    private class Bare : GuestMemoryRegion
    {
        public override ulong GuestAddress => 0x1000;

        public override ulong Size => 0x400;

        public override BitmapSlice GetBitmap() => default;
    }

    private sealed class OverAnArray(AtomicBitmap bitmap) : Bare
    {
        private readonly VolatileSlice _all = VolatileSlice.FromArray(new byte[0x400], bitmap.SliceAt(0));

        public override VolatileSlice GetSlice(MemoryRegionAddress offset, ulong count) => _all.Subslice(offset.Value, count);
    }
}
