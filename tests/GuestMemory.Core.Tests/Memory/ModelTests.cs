namespace GuestMemory.Core.Tests;

/// <summary>Reads, writes, streams and bitmaps of random layouts beside a model of byte arrays and sets of pages.</summary>
public sealed class ModelTests
{
    private static readonly int s_page = (int)HostPage.Size;

    [ModelProperty(200, typeof(MemoryHistory))]
    public void EverythingAgreesWithTheModel(MemoryHistory history)
    {
        using var test = new TestMemory();
        var layout = history.Layout(s_page);
        var memory = test.Space(layout);
        var model = new ModelMemory(layout.Select(part => (part.Address, part.Size)));
        foreach (var step in history.Steps) Step(step, memory, model);
        Check(memory, model);
    }

    private static void Step(MemoryHistory.Step step, GuestMemoryMmap memory, ModelMemory model)
    {
        var (at, length) = (Address(step.At, model), (int)step.Length);
        var address = new GuestAddress(at);
        var bytes = Content(step, length);
        var mapped = model.Mapped(at, length);
        switch (step.Operation)
        {
            case MemoryHistory.Operation.Write:
                Agree(model, at, length, () => memory.Write(address, bytes), () => model.Write(at, bytes));
                break;
            case MemoryHistory.Operation.Read:
                var back = new byte[length];
                Agree(model, at, length, () => memory.Read(address, back), null);
                Assert.Equal(model.Read(at, length), back[..mapped]);
                break;
            case MemoryHistory.Operation.WriteExact:
                Exactly(model, at, length, () => memory.WriteExact(address, bytes));
                model.Write(at, bytes);
                break;
            case MemoryHistory.Operation.ULong:
                Object<ulong>(memory, model, at, step);
                break;
            case MemoryHistory.Operation.UShort:
                Object<ushort>(memory, model, at, step);
                break;
            case MemoryHistory.Operation.Guid:
                Object<Guid>(memory, model, at, step);
                break;
            case MemoryHistory.Operation.Atomic:
                Atomic<uint>(memory, model, at, step);
                break;
            case MemoryHistory.Operation.ReadFromSource:
                ReadFromSource(memory, model, at, bytes, step);
                break;
            case MemoryHistory.Operation.WriteToSink:
                WriteToSink(memory, model, at, length);
                break;
            case MemoryHistory.Operation.Find:
                Assert.Equal(mapped == length, memory.CheckRange(address, (ulong)length));
                var (region, expected) = (memory.FindRegion(address), model.Find(at));
                Assert.Equal(expected?.Address, region?.GuestAddress);
                Assert.Equal(expected is null ? null : at - expected.Address, memory.ToRegionAddress(address)?.Address.Value);
                break;
            case MemoryHistory.Operation.Copy:
                Copy(memory, model, at, Address(step.Other, model), Math.Max(1, step.Length));
                break;
            case MemoryHistory.Operation.NewTracker:
                Region(memory, step.At).GetMemory().SetTracker(new AtomicBitmap(Region(memory, step.At).Size, HostPage.Size), keepDirty: true);
                break;
            default:
                CheckDirty(Region(memory, step.At).GetDirtyBitmap(clear: true), Region(model, step.At));
                Region(model, step.At).Dirty.Clear();
                break;
        }
    }

    private static ModelMemory.Region Region(ModelMemory model, MemoryHistory.Place place) => model.Regions[place.Region % model.Regions.Length];

    private static GuestMemoryRegion Region(GuestMemoryMmap memory, MemoryHistory.Place place) => memory.Regions[place.Region % memory.Regions.Count];

    private static ulong Address(MemoryHistory.Place place, ModelMemory model)
    {
        var region = Region(model, place);
        var from = place.Edge switch
        {
            MemoryHistory.Edge.Start => region.Address,
            MemoryHistory.Edge.End => region.End,
            _ => region.Address + (place.Offset % (ulong)region.Bytes.Length),
        };
        return from >= place.Before ? from - place.Before : from;
    }

    private static byte[] Content(MemoryHistory.Step step, int length)
    {
        var bytes = new byte[length];
        new Random(step.Content).NextBytes(bytes);
        return bytes;
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

    private static unsafe void Object<T>(GuestMemoryMmap memory, ModelMemory model, ulong at, MemoryHistory.Step step)
        where T : unmanaged
    {
        var bytes = Content(step, sizeof(T));
        var value = System.Runtime.InteropServices.MemoryMarshal.Read<T>(bytes);
        Exactly(model, at, sizeof(T), () => memory.WriteObject(new GuestAddress(at), value));
        model.Write(at, bytes);
        Exactly(model, at, sizeof(T), () => Assert.Equal(value, memory.ReadObject<T>(new GuestAddress(at))));
    }

    private static void Atomic<T>(GuestMemoryMmap memory, ModelMemory model, ulong at, MemoryHistory.Step step)
        where T : unmanaged, System.Numerics.IBinaryInteger<T>
    {
        var bytes = Content(step, 4);
        var value = T.ReadLittleEndian(bytes, isUnsigned: true);
        var address = new GuestAddress(at);
        if (model.Find(at) is not { } region)
        {
            Assert.Equal(GuestMemoryError.InvalidGuestAddress, Failure.Of(() => memory.Store(address, value, AtomicOrdering.SeqCst)));
            return;
        }

        // Regions begin at pages of the host.
        if (region.End - at < 4 || (at - region.Address) % 4 != 0)
        {
            Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => memory.Store(address, value, AtomicOrdering.SeqCst)));
            Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => memory.Load<T>(address, AtomicOrdering.SeqCst)));
            return;
        }

        memory.Store(address, value, AtomicOrdering.Release);
        model.Write(at, bytes);
        Assert.Equal(value, memory.Load<T>(address, AtomicOrdering.Acquire));
    }

    private static void ReadFromSource(GuestMemoryMmap memory, ModelMemory model, ulong at, byte[] bytes, MemoryHistory.Step step)
    {
        var has = (int)Math.Min((uint)bytes.Length, step.Available);
        var parts = model.Parts(at, bytes.Length).Select(part => part.Count).ToArray();
        // Short reads in pieces: the last region takes one, those before it go on until they are full.
        var piece = 1 + (int)step.Piece;
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
    private static void Copy(GuestMemoryMmap memory, ModelMemory model, ulong at, ulong to, ulong count)
    {
        if (model.Find(at) is not { } source || model.Find(to) is not { } target) return;
        var from = memory.GetSlice(new GuestAddress(at), source.End - at);
        var into = memory.GetSlice(new GuestAddress(to), target.End - to);
        from = from.Subslice(0, Math.Min(from.Size, count));
        from.CopyToVolatileSlice(into);
        model.Write(to, model.Read(at, (int)Math.Min(from.Size, into.Size)));
    }

    private static void Check(GuestMemoryMmap memory, ModelMemory model)
    {
        foreach (var (region, expected) in memory.Regions.Zip(model.Regions))
        {
            var bytes = new byte[expected.Bytes.Length];
            region.ReadExact(default, bytes);
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
