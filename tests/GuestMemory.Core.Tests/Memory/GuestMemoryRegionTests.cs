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
        Assert.Equal(backing is "file" or "memfd" or "foreign" or "granted", region.GetFileOffset() is not null);
        Assert.Equal((0x2000UL, 0x800UL), (region.AsVolatileSlice().Size, region.GetSlice(new MemoryRegionAddress(0x1800), 0x800).Size));
        Assert.Null(region.IsHugetlbfs);
        region.WriteObject(new MemoryRegionAddress(0x1000), 7UL);
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
        large.WriteObject(new MemoryRegionAddress((1UL << 31) - 4), 7);
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
            () => region.Read(default, new byte[1]),
            () => region.Write(default, [1]),
            () => region.ReadExact(default, new byte[1]),
            () => region.WriteExact(default, [1]),
            () => region.ReadObject<int>(default),
            () => region.WriteObject(default, 1),
            () => region.Load<int>(default, AtomicOrdering.Relaxed),
            () => region.Store(default, 1, AtomicOrdering.Relaxed),
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
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.Read(default, new byte[1])));
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => GuestMemoryMmap.FromRegions([region])));
    }

    /// <summary>A region's errors are its own, with the slice's inside.</summary>
    [Theory]
    [BackingData(OddSizes = true)]
    public void TheCauseOfAnErrorIsInside(string backing)
    {
        var region = _memory.Region(backing, 0x1000, 0x400);
        region.WriteObject(new MemoryRegionAddress(0x1fe), 0x11223344u);
        Assert.Equal(0x11223344u, region.ReadObject<uint>(new MemoryRegionAddress(0x1fe)));
        region.Store(new MemoryRegionAddress(0x300), (ushort)5, AtomicOrdering.SeqCst);
        Assert.Equal((5, 1L), (region.Load<ushort>(new MemoryRegionAddress(0x300), AtomicOrdering.SeqCst), region.GetDirtyBitmap().DirtyCount));
        var source = new CursorSource(new byte[] { 1, 2, 3 });
        region.ReadExactVolatileFrom(new MemoryRegionAddress(0x3fd), ref source, 3);
        var buffer = new byte[4];
        var sink = new CursorSink(buffer);
        Assert.Equal(3UL, region.WriteVolatileTo(new MemoryRegionAddress(0x3fd), ref sink, 100));
        Assert.Equal([1, 2, 3, 0], buffer);
        Assert.Equal(1, region.Read(new MemoryRegionAddress(0x3ff), buffer));
        foreach (var access in (Action[])
        [
            () => region.Read(new MemoryRegionAddress(0x400), buffer),
            () => region.Write(new MemoryRegionAddress(0x400), buffer),
            () => region.ReadObject<int>(new MemoryRegionAddress(0x400)),
            () => region.WriteObject(new MemoryRegionAddress(ulong.MaxValue), 1),
            () => region.Load<int>(new MemoryRegionAddress(0x3fd), AtomicOrdering.Relaxed),
            () => region.Store(new MemoryRegionAddress(0x1), 1, AtomicOrdering.Relaxed),
            () => region.ReadVolatileFrom(new MemoryRegionAddress(0x401), ref source, 1),
            () => region.WriteAllVolatileTo(new MemoryRegionAddress(0x3ff), ref sink, 2),
        ])
        {
            var failure = Assert.Throws<GuestMemoryException>(access);
            Assert.Equal((GuestMemoryError.InvalidBackendAddress, true), (failure.Error, failure.InnerException is VolatileMemoryException));
        }

        Assert.Throws<PartialBufferException>(() => region.ReadExact(new MemoryRegionAddress(0x3fe), buffer));
        Assert.Throws<PartialBufferException>(() => region.WriteExact(new MemoryRegionAddress(0x3fe), buffer));
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

    /// <summary>section 1.3 and 1.4 of mmap-region-and-xen.md, and from_ranges.</summary>
    [Fact]
    public void FromRangesMapsAnonymousMemoryAndFiles()
    {
        var path = _memory.NewFile(0x3000);
        using var file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite);
        var memory = GuestMemoryMmap.FromRanges([(0x1000, 0x1000UL, null, 0UL), (0x2000, 0x2000UL, file, 0x1000UL)]);
        memory.WriteExact(0x1ffe, [1, 2, 3, 4]);
        Assert.Equal([3, 4, 0], File.ReadAllBytes(path)[0x1000..0x1003]);
        Assert.Equal((null, 0x1000UL), (memory.Regions[0].GetFileOffset(), memory.Regions[1].GetFileOffset()!.Start));
        foreach (var region in memory.Regions) region.Dispose();
        var two = GuestMemoryMmap.FromRanges([(0, 0x1000UL), (0x1000, 0x1000UL)]);
        Assert.Equal((2, 0x2000UL), (two.Regions.Count, two.Size));
        foreach (var region in two.Regions) region.Dispose();
        // Where one fails none stays: its memory is not mapped any more.
        var before = File.ReadAllLines("/proc/self/maps").Count(line => line.EndsWith(path, StringComparison.Ordinal));
        Assert.Equal(GuestMemoryError.MemoryRegionOverlap, Failure.Of(() => GuestMemoryMmap.FromRanges([(0, 0x1000UL, file, 0UL), (0xfff, 0x1000UL, null, 0UL)])));
        Assert.Equal(GuestMemoryError.MappingPastEof, Failure.Of(() => GuestMemoryMmap.FromRanges([(0, 0x1000UL, file, 0UL), (0x1000, 0x1000UL, file, 0x3000UL)])));
        Assert.Equal(GuestMemoryError.InvalidGuestRegion, Failure.Of(() => GuestMemoryMmap.FromRanges([(ulong.MaxValue, 1UL)])));
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure.Of(() => GuestMemoryMmap.FromRanges(Array.Empty<(GuestAddress, ulong)>())));
        Assert.Equal(before, File.ReadAllLines("/proc/self/maps").Count(line => line.EndsWith(path, StringComparison.Ordinal)));
    }

    /// <summary>vm-memory's VolatileMemory is the mapping's, too.</summary>
    [Fact]
    public void AMappingHasReferencesOfItsOwn()
    {
        using var mapping = new MmapRegionBuilder(0x1000).Build();
        mapping.GetRef<uint>(1).Store(7);
        mapping.GetArrayRef<ushort>(0x10, 4).Store(2, 8);
        mapping.GetAtomicRef<ulong>(0x20).Store(9, AtomicOrdering.SeqCst);
        Assert.Equal((7u, 8, 9UL), (mapping.GetSlice(1, 4).ReadObject<uint>(0), mapping.AsVolatileSlice().ReadObject<ushort>(0x14), mapping.AsVolatileSlice().ReadObject<ulong>(0x20)));
        Assert.Equal(GuestMemoryError.OutOfBounds, Failure.Of(() => mapping.GetRef<uint>(0xffd)));
        Assert.Equal(GuestMemoryError.Misaligned, Failure.Of(() => mapping.GetAtomicRef<uint>(2)));
        using (var value = mapping.AlignedAsMut<ulong>(0x28)) value.Span[0] = 10;
        using (var value = mapping.AlignedAsRef<ulong>(0x28)) Assert.Equal(10UL, value.Span[0]);
        Assert.Equal(GuestMemoryError.Misaligned, Failure.Of(() => mapping.AlignedAsRef<ulong>(4)));
        Assert.Null(mapping.IsHugetlbfs);
        mapping.SetHugetlbfs(true);
        Assert.True(mapping.IsHugetlbfs);
        mapping.SetHugetlbfs(false);
        Assert.False(mapping.IsHugetlbfs);
    }

    [Fact]
    public void TextSaysWhatItIs()
    {
        var memory = _memory.Space([("anonymous", 0, 0x1000), ("pread", 0x2000, 0x1000)]);
        Assert.Equal("anonymous [0x0-0xfff], pread [0x2000-0x2fff]", memory.ToString());
        Assert.Equal(("no memory", "nothing"), (GuestMemoryMmap.Empty.ToString(), default(VolatileSlice).ToString()));
        Assert.Equal(("MmapRegion of 0x1000 bytes, ReadWrite, tracked", "PreadMemory of 0x1000 bytes, ReadWrite, guarded, tracked"), (memory.Regions[0].GetMemory().ToString(), memory.Regions[1].GetMemory().ToString()));
        var slice = memory.GetSlice(0x2010, 0x20);
        Assert.Equal(("0x20 bytes at offset 0x10, guarded, tracked", "UInt32, 0x4 bytes at offset 0x14, guarded, tracked", "UInt16[3], 0x6 bytes at offset 0x10, guarded, tracked"),
            (slice.ToString(), slice.GetRef<uint>(4).ToString(), slice.GetArrayRef<ushort>(0, 3).ToString()));
        Assert.Equal("UInt32 at offset 0x10, guarded, tracked", slice.GetAtomicRef<uint>(0).ToString());
        memory.Regions[1].Dispose();
        Assert.Equal("0x20 bytes at offset 0x10, removed", slice.ToString());
    }

    [Fact]
    public void TextOfBitmapsSaysWhatTheyHold()
    {
        var region = _memory.Region("anonymous", 0x2000, 0x3000);
        region.Write(new MemoryRegionAddress(0x1000), [1]);
        Assert.Equal("AtomicBitmap of 3 pages of 0x1000 bytes, 1 dirty", region.RequireTracker().ToString());
        Assert.Equal("region anonymous: 1 of 3 pages of 0x1000 bytes from 0x2000 are dirty", region.GetDirtyBitmap().ToString());
        using var log = MmapLogReg.FromMemfd(64);
        Assert.Equal($"log {log.Path}, 0x40 bytes, sealed", log.ToString());
        var part = new AtomicBitmapMmap(0x2000, 0x3000, log);
        Assert.Equal($"3 pages from 0x2000 in the {log}", part.ToString());
        var bitmap = new BitmapMmapRegion();
        Assert.Equal("no tracker", bitmap.ToString());
        bitmap.Replace(part);
        Assert.Equal(part.ToString(), bitmap.ToString());
        bitmap.Replace(null);
        Assert.Equal("0x2 bytes at 0x1000", new MemoryBlock(0x1000, [1, 2]).ToString());
    }

    private sealed class Bare() : VolatileMemory(0x400);
}
