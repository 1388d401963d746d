namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md section 15, row by row, and 16.17: what each way of writing marks, in a bitmap and in a shared log.</summary>
public sealed class DirtyMarkingTests : IDisposable
{
    private const ulong Size = 0x10000, Page = 0x1000;
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    /// <summary>The ways to write, each from 0x1ff8 on, with the bytes that are marked from there.</summary>
    public static TheoryData<string, string, string, int> Ways()
    {
        var data = new TheoryData<string, string, string, int>();
        foreach (var backing in TestMemory.Kinds)
        {
            foreach (var tracker in (string[])["bitmap", "log"])
            {
                foreach (var (way, marked) in s_marked) data.Add(backing, tracker, way, marked);
            }
        }

        return data;
    }

    private static readonly (string Way, int Marked)[] s_marked =
    [
        ("write", 9), ("write_slice", 9), ("write_obj", 4), ("write_obj across pages", 16), ("copy_from u8", 9), ("copy_from u32", 12),
        ("array copy_from", 24), ("array of bytes copy_from", 3), ("ref store", 8), ("array store", 2), ("atomic store", 8), ("copy_to_volatile_slice", 16),
        ("read from a file", 7), ("exact read from a file", 9), ("failing read", 16), ("read from a span", 9), ("read from a cursor", 9), ("read from a stream", 9),
        ("nothing written", 0), ("ptr guard", 0), ("aligned_as_mut", 0), ("get_atomic_ref", 0), ("get_host_address", 0), ("reads", 0),
    ];

    [Theory]
    [MemberData(nameof(Ways))]
    public void V15_AWriteMarksWhatItWrote(string backing, string tracker, string way, int marked)
    {
        var region = Region(backing, tracker);
        var slice = region.GetSlice(new MemoryRegionAddress(0x1ff8), 16);
        Write(way, region, slice);
        var expected = Enumerable.Range(0, (int)(Size / Page)).Where(page => marked > 0 && (ulong)page >= 1 && (ulong)page <= (0x1ff8 + (ulong)marked - 1) / Page);
        var actual = Enumerable.Range(0, (int)(Size / Page)).Where(page => region.GetBitmap().IsDirtyAt((ulong)page * Page));
        Assert.Equal(expected, actual);
        // The view of the slice is the region's, further on.
        Assert.Equal(marked > 0, slice.Bitmap.IsDirtyAt(0));
        Assert.Equal(marked > 8, slice.Bitmap.IsDirtyAt(8));
    }

    private unsafe void Write(string way, GuestMemoryRegion region, VolatileSlice slice)
    {
        byte[] nine = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        switch (way)
        {
            case "write": Assert.Equal(9, slice.Write(0, nine)); break;
            case "write_slice": slice.WriteExact(0, nine); break;
            case "write_obj": slice.WriteObject(0, 7u); break;
            case "write_obj across pages": slice.WriteObject(0, Guid.Empty); break;
            case "copy_from u8": slice.CopyFrom<byte>(nine); break;
            case "copy_from u32": slice.CopyFrom<uint>([1, 2, 3]); break;
            case "array copy_from": region.GetMemory().AsVolatileSlice().GetArrayRef<ulong>(0x1ff8, 5).CopyFrom([1, 2, 3]); break;
            case "array of bytes copy_from": slice.GetArrayRef<byte>(0, 4).CopyFrom([1, 2, 3]); break;
            case "ref store": slice.GetRef<ulong>(0).Store(7); break;
            case "array store": region.AsVolatileSlice().GetArrayRef<ushort>(0x1f00, 0x100).Store(0xf8 / 2, 7); break;
            case "atomic store": slice.Store(0, 7UL, AtomicOrdering.SeqCst); break;
            case "copy_to_volatile_slice": VolatileSlice.FromArray(new byte[100]).CopyToVolatileSlice(slice); break;
            case "read from a file":
            case "exact read from a file":
                var path = _memory.NewFile(way == "read from a file" ? 7 : 9);
                using (var file = File.OpenHandle(path))
                {
                    var stream = new DescriptorStream(file);
                    if (way == "read from a file") Assert.Equal(7UL, slice.ReadVolatileFrom(0, ref stream, 16));
                    else slice.ReadExactVolatileFrom(0, ref stream, 9);
                }

                break;
            case "failing read":
                using (var folder = File.OpenHandle("/proc/self/mem"))
                {
                    // Nothing is mapped at address 0.
                    var stream = new DescriptorStream(folder);
                    Assert.Throws<SyscallException>(() => slice.ReadVolatileFrom(0, ref stream, 16));
                }

                break;
            case "read from a span":
                var span = new SpanSource(nine);
                slice.ReadVolatileFrom(0, ref span, 16);
                break;
            case "read from a cursor":
                var cursor = new CursorSource(nine);
                slice.ReadExactVolatileFrom(0, ref cursor, 9);
                break;
            case "read from a stream":
                var adapter = new StreamAdapter(new MemoryStream(nine));
                slice.ReadVolatileFrom(0, ref adapter, 16);
                break;
            case "nothing written":
                slice.Write(3, []);
                slice.CopyFrom<byte>([]);
                slice.CopyFrom<UInt128>([]);
                default(VolatileSlice).CopyToVolatileSlice(slice);
                var empty = new SpanSource([]);
                Assert.Equal(0UL, slice.ReadVolatileFrom(0, ref empty, 16));
                break;
            case "ptr guard":
                using (var guard = slice.PtrGuard())
                {
                    if (!region.GetMemory().IsGuarded) *(ulong*)guard.Pointer = 7;
                }

                break;
            case "aligned_as_mut":
                if (region.GetMemory().IsGuarded) break;
                using (var value = slice.AlignedAsMut<ulong>(0)) value.Value = 7;
                break;
            case "get_atomic_ref":
                var atomic = slice.GetAtomicRef<ulong>(0);
                atomic.Store(1, AtomicOrdering.SeqCst);
                Assert.Equal((1UL, 2UL, 5UL, 7UL, 3UL), (atomic.Exchange(2), atomic.CompareExchange(5, 2), atomic.FetchOr(2), atomic.FetchAnd(3), atomic.FetchAdd(4)));
                Assert.Equal(7UL, atomic.Load(AtomicOrdering.Acquire));
                break;
            case "get_host_address":
                if (!region.GetMemory().HasHostAddress) break;
                var host = region.GetHostAddress(new MemoryRegionAddress(0x1ff8));
                if (!region.GetMemory().IsGuarded) *(ulong*)host = 7;
                break;
            case "reads":
                var buffer = new byte[16];
                slice.ReadExact(0, buffer);
                slice.ReadObject<ulong>(0);
                slice.Load<uint>(0, AtomicOrdering.SeqCst);
                slice.CopyTo(buffer);
                slice.CopyTo(new uint[4]);
                slice.GetRef<ushort>(3).Load();
                slice.GetArrayRef<ushort>(0, 8).CopyTo(new ushort[8]);
                slice.CopyToVolatileSlice(VolatileSlice.FromArray(buffer));
                var sink = new SpanSink(buffer);
                slice.WriteAllVolatileTo(0, ref sink, 16);
                break;
            default: throw new ArgumentException(way, nameof(way));
        }
    }

    [Theory]
    [BackingData("bitmap")]
    [BackingData("log")]
    public void V16_17_Writes(string backing, string tracker)
    {
        var region = Region(backing, tracker);
        var memory = GuestMemoryMmap.FromRegions([region]);
        var at = region.GuestAddress;
        Marks(region, 0x1000, () => Assert.Equal(1024, memory.Write(new GuestAddress(at + 0x1000), new byte[1024])));
        Marks(region, 0x2000, () => memory.WriteExact(new GuestAddress(at + 0x2000), new byte[1024]));
        Marks(region, 0x3000, () => memory.WriteObject(new GuestAddress(at + 0x3000), 7UL));
        Marks(region, 0x4000, () => memory.Store(new GuestAddress(at + 0x4000), 7UL, AtomicOrdering.Relaxed));
        Marks(region, 0x5000, () => region.Write(new MemoryRegionAddress(0x5000), new byte[1]));
        Marks(region, 0x6000, () => region.AsVolatileSlice().GetRef<ushort>(0x6000).Store(7));
        Marks(region, 0x7000, () => region.AsVolatileSlice().GetArrayRef<ushort>(0x7000, 4).Store(3, 7));
    }

    [Theory]
    [BackingData("bitmap")]
    [BackingData("log")]
    public void V16_17_Copies(string backing, string tracker)
    {
        var region = Region(backing, tracker);
        var slice = region.AsVolatileSlice();
        var (first, second) = slice.SplitAt(0x1000);
        VolatileSlice.FromArray(new byte[0x1000]).CopyToVolatileSlice(second);
        Assert.Equal((false, true), (first.Bitmap.IsDirtyAt(0xfff), second.Bitmap.IsDirtyAt(0)));
        Assert.Equal([1], Dirty(region));
        second.Subslice(0x1000, 0x2000).CopyFrom<byte>(new byte[0x1000]);
        Assert.Equal([1, 2], Dirty(region));
        slice.Subslice(0x4000, 0x2000).CopyFrom<uint>(new uint[0x400]);
        Assert.Equal([1, 2, 4], Dirty(region));
        slice.Subslice(0x8000, 0x3000).CopyToVolatileSlice(slice.Offset(0xd000));
        Assert.Equal([1, 2, 4, 13, 14, 15], Dirty(region));
        region.RequireTracker().Reset();
        slice.GetArrayRef<ulong>(0, 0x1001).Store(0x1000, 7);
        Assert.Equal([8], Dirty(region));
        Assert.Equal((false, true), (slice.Bitmap.IsDirtyAt(0x7fff), slice.Bitmap.IsDirtyAt(0x8000)));
    }

    /// <summary>Every slice follows, also those that are older than the first tracker.</summary>
    [Fact]
    public void SlicesFollowTheTracker()
    {
        using var mapping = new MmapRegionBuilder(Size).Build();
        var slice = mapping.GetSlice(0x3000, 0x2000);
        slice.WriteObject(0, 1);
        Assert.Null(mapping.Bitmap);
        var first = new AtomicBitmap(Size, Page);
        mapping.SetTracker(first);
        slice.WriteObject(0, 1);
        var second = Log(0);
        mapping.SetTracker(second, keepDirty: true);
        slice.WriteObject(0x1000, 1);
        mapping.SetTracker(null);
        slice.WriteObject(0x1800, 1);
        mapping.GetSlice(0, 8).WriteObject(0, 1);
        Assert.Equal((0b1000UL, 0b11000UL), (first.Snapshot()[0], second.Snapshot()[0]));
    }

    private void Marks(GuestMemoryRegion region, ulong offset, Action write)
    {
        Assert.False(region.GetBitmap().IsDirtyAt(offset));
        write();
        Assert.Equal([(int)(offset / Page)], Dirty(region));
        region.RequireTracker().Reset();
    }

    private static int[] Dirty(GuestMemoryRegion region) => [.. Enumerable.Range(0, (int)(Size / Page)).Where(page => region.GetBitmap().IsDirtyAt((ulong)page * Page))];

    private GuestMemoryRegion Region(string backing, string tracker)
    {
        var region = _memory.Region(backing, 0x40000, Size);
        if (tracker == "log") region.GetMemory().SetTracker(Log(0x40000));
        return region;
    }

    private AtomicBitmapMmap Log(ulong start)
    {
        var length = MmapLogReg.RequiredLength(new GuestAddress(start + Size - 1));
        using var file = File.OpenHandle(_memory.NewFile((long)length), FileMode.Open, FileAccess.ReadWrite);
        return new AtomicBitmapMmap(new GuestAddress(start), Size, MmapLogReg.FromFile(file, 0, length));
    }
}
