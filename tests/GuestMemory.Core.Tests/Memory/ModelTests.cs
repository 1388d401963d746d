namespace GuestMemory.Core.Tests;

/// <summary>Reads, writes, streams and bitmaps of random layouts beside a model of byte arrays and sets of pages.</summary>
public sealed class ModelTests
{
    private const int Layouts = 200, Steps = 40;
    private static readonly int s_page = (int)HostPage.Size;

    [Fact]
    public void EverythingAgreesWithTheModel() => Stress.ForEachSeed(Layouts, random =>
    {
        using var test = new TestMemory();
        var layout = Layout(random);
        var memory = test.Space(layout);
        var model = new ModelMemory(layout.Select(part => (part.Address, part.Size)));
        for (var step = 0; step < Steps; step++) Step(random, memory, model);
        Check(memory, model);
    });

    /// <summary>1 to 12 regions of several kinds, with gaps and touching, of whole pages and odd sizes, high up now and then.</summary>
    private static (string Backing, ulong Address, ulong Size)[] Layout(Random random)
    {
        var parts = new (string, ulong, ulong)[random.Next(1, 13)];
        var address = random.Next(4) == 0 ? ulong.MaxValue - (1UL << 30) : (ulong)random.Next(0, 3) * 0x1000;
        for (var i = 0; i < parts.Length; i++)
        {
            var size = (ulong)(random.Next(3) == 0 ? random.Next(1, 4 * s_page) : random.Next(1, 4) * s_page);
            var backing = random.Next(8) switch { 0 => "memfd", 1 => "file", 3 => "window", 4 => "pread", 2 when random.Next(10) == 0 => TestMemory.Backings[^1], _ => "anonymous" };
            if (backing == "served") size = (size + (ulong)s_page - 1) / (ulong)s_page * (ulong)s_page;
            parts[i] = (backing, address, size);
            address += size + (random.Next(2) == 0 ? 0 : (ulong)random.Next(1, 2 * s_page));
        }

        return parts;
    }

    private static void Step(Random random, GuestMemoryMmap memory, ModelMemory model)
    {
        var (at, length) = Range(random, model);
        var address = new GuestAddress(at);
        var bytes = new byte[length];
        random.NextBytes(bytes);
        var mapped = model.Mapped(at, length);
        switch (random.Next(12))
        {
            case 0:
                Agree(model, at, length, () => memory.Write(address, bytes), () => model.Write(at, bytes));
                break;
            case 1:
                var back = new byte[length];
                Agree(model, at, length, () => memory.Read(address, back), null);
                Assert.Equal(model.Read(at, length), back[..mapped]);
                break;
            case 2:
                Exactly(model, at, length, () => memory.WriteExact(address, bytes));
                model.Write(at, bytes);
                break;
            case 3:
                Object<ulong>(memory, model, at, random);
                break;
            case 4:
                Object<ushort>(memory, model, at, random);
                break;
            case 5:
                Object<Guid>(memory, model, at, random);
                break;
            case 6:
                Atomic<uint>(memory, model, at, random);
                break;
            case 7:
                ReadFromSource(memory, model, at, bytes, random);
                break;
            case 8:
                WriteToSink(memory, model, at, length);
                break;
            case 9:
                Assert.Equal(mapped == length, memory.CheckRange(address, (ulong)length));
                var (region, expected) = (memory.FindRegion(address), model.Find(at));
                Assert.Equal(expected?.Address, region?.GuestAddress);
                Assert.Equal(expected is null ? null : at - expected.Address, memory.ToRegionAddress(address)?.Address.Value);
                break;
            case 10:
                Copy(memory, model, at, random);
                break;
            default:
                Bitmaps(memory, model, random);
                break;
        }
    }

    /// <summary>A range that begins at, before or behind a border more often than elsewhere.</summary>
    private static (ulong Address, int Length) Range(Random random, ModelMemory model)
    {
        var region = model.Regions[random.Next(model.Regions.Length)];
        var from = random.Next(4) switch
        {
            0 => region.Address,
            1 => region.End,
            _ => region.Address + (ulong)random.NextInt64(region.Bytes.Length),
        };
        var address = unchecked(from - (ulong)random.Next(20) * (ulong)random.Next(2));
        if (address > from) address = from;
        return (address, random.Next(4) switch { 0 => random.Next(17), 1 => random.Next(4 * s_page), 2 => random.Next(20 * s_page), _ => random.Next(200) });
    }

    /// <summary>What comes back is what is mapped; where not even the first byte is, an error.</summary>
    private static void Agree(ModelMemory model, ulong at, int length, Func<int> access, Action? change)
    {
        if (length > 0 && model.Find(at) is null)
        {
            var failure = Assert.Throws<GuestMemoryException>(() => access());
            Assert.Equal((GuestMemoryError.InvalidGuestAddress, at), (failure.Error, failure.Address));
            return;
        }

        Assert.Equal(model.Mapped(at, length), access());
        change?.Invoke();
    }

    private static void Exactly(ModelMemory model, ulong at, int length, Action access)
    {
        var mapped = model.Mapped(at, length);
        if (mapped == length) access();
        else if (mapped == 0) Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(access));
        else Assert.Equal(((ulong)length, (ulong)mapped), Assert.Throws<PartialBufferException>(access) is var partial ? (partial.Expected, partial.Completed) : default);
    }

    private static unsafe void Object<T>(GuestMemoryMmap memory, ModelMemory model, ulong at, Random random)
        where T : unmanaged
    {
        var bytes = new byte[sizeof(T)];
        random.NextBytes(bytes);
        var value = System.Runtime.InteropServices.MemoryMarshal.Read<T>(bytes);
        Exactly(model, at, sizeof(T), () => memory.WriteObject(new GuestAddress(at), value));
        model.Write(at, bytes);
        Exactly(model, at, sizeof(T), () => Assert.Equal(value, memory.ReadObject<T>(new GuestAddress(at))));
    }

    private static void Atomic<T>(GuestMemoryMmap memory, ModelMemory model, ulong at, Random random)
        where T : unmanaged, System.Numerics.IBinaryInteger<T>
    {
        var bytes = new byte[4];
        random.NextBytes(bytes);
        var value = T.ReadLittleEndian(bytes, isUnsigned: true);
        var address = new GuestAddress(at);
        if (model.Find(at) is not { } region)
        {
            Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.Store(value, address, AtomicOrdering.SeqCst)));
            return;
        }

        // Regions begin at pages of the host.
        if (region.End - at < 4 || (at - region.Address) % 4 != 0)
        {
            Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => memory.Store(value, address, AtomicOrdering.SeqCst)));
            Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => memory.Load<T>(address, AtomicOrdering.SeqCst)));
            return;
        }

        memory.Store(value, address, AtomicOrdering.Release);
        model.Write(at, bytes);
        Assert.Equal(value, memory.Load<T>(address, AtomicOrdering.Acquire));
    }

    private static void ReadFromSource(GuestMemoryMmap memory, ModelMemory model, ulong at, byte[] bytes, Random random)
    {
        var has = random.Next(2) == 0 ? bytes.Length : random.Next(bytes.Length + 1);
        var parts = model.Parts(at, bytes.Length).Select(part => part.Count).ToArray();
        // Short reads in pieces: the last region takes one, those before it go on until they are full.
        var piece = random.Next(1, 5000);
        var stream = new StreamAdapter(new Slow(bytes.AsMemory(0, has), piece));
        var whole = parts.Length == 0 || parts.Sum() < bytes.Length ? parts : parts[..^1];
        var expected = Math.Min(has, whole.Sum());
        if (parts.Length > whole.Length && has > expected) expected += Math.Min(Math.Min(has - expected, piece), parts[^1]);
        Agree(model, at, bytes.Length, () =>
        {
            var came = (int)memory.ReadVolatileFrom(new GuestAddress(at), ref stream, (ulong)bytes.Length);
            Assert.Equal(expected, came);
            return parts.Sum();
        }, () => model.Write(at, bytes.AsSpan(0, expected)));
    }

    private static void WriteToSink(GuestMemoryMmap memory, ModelMemory model, ulong at, int length)
    {
        var buffer = new byte[length];
        var sink = new CursorSink(buffer);
        Agree(model, at, length, () => (int)memory.WriteVolatileTo(new GuestAddress(at), ref sink, (ulong)length), null);
        Assert.Equal(model.Read(at, length), buffer[..(int)sink.Position]);
    }

    /// <summary>From the region at an address to one at another, which may be the same.</summary>
    private static void Copy(GuestMemoryMmap memory, ModelMemory model, ulong at, Random random)
    {
        var to = Range(random, model).Address;
        if (model.Find(at) is not { } source || model.Find(to) is not { } target) return;
        var from = memory.GetSlice(new GuestAddress(at), source.End - at);
        var into = memory.GetSlice(new GuestAddress(to), target.End - to);
        from = from.Subslice(0, Math.Min(from.Size, (ulong)random.Next(1, 3 * s_page)));
        from.CopyToVolatileSlice(into);
        model.Write(to, model.Read(at, (int)Math.Min(from.Size, into.Size)));
    }

    private static void Bitmaps(GuestMemoryMmap memory, ModelMemory model, Random random)
    {
        var index = random.Next(model.Regions.Length);
        var (region, expected) = (memory.Regions[index], model.Regions[index]);
        if (random.Next(2) == 0)
        {
            region.GetMemory().SetTracker(new AtomicBitmap(region.Size, HostPage.Size), keepDirty: true);
            return;
        }

        CheckDirty(region.GetDirtyBitmap(clear: true), expected);
        expected.Dirty.Clear();
    }

    private static void Check(GuestMemoryMmap memory, ModelMemory model)
    {
        foreach (var (region, expected) in memory.Regions.Zip(model.Regions))
        {
            var bytes = new byte[expected.Bytes.Length];
            region.ReadExact(bytes, default);
            Assert.True(bytes.AsSpan().SequenceEqual(expected.Bytes), $"the bytes of {region}");
            CheckDirty(region.GetDirtyBitmap(), expected);
        }
    }

    private static void CheckDirty(DirtyBitmap bitmap, ModelMemory.Region expected)
    {
        var pages = new long[bitmap.DirtyCount + 1];
        Assert.Equal(expected.Dirty.Order(), pages[..bitmap.ListPages(pages)]);
    }

    /// <summary>Gives at most so many bytes at a time.</summary>
    private sealed class Slow(ReadOnlyMemory<byte> bytes, int piece) : MemoryStream(bytes.ToArray())
    {
        public override int Read(byte[] buffer, int offset, int count) => base.Read(buffer, offset, Math.Min(count, piece));
    }
}
