using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A layout of regions and what is done to it. Every value of the fields means something, so that a failing history can be cut and
/// its numbers made smaller until it is short.
/// </summary>
public sealed record MemoryHistory(byte Start, MemoryHistory.Part[] Parts, MemoryHistory.Step[] Steps)
{
    public enum Operation { Write, Read, WriteExact, ULong, UShort, Guid, Atomic, ReadFromSource, WriteToSink, Find, Copy, NewTracker, TakeDirty }

    public enum Backing { Anonymous, Memfd, File, Window, Pread, Foreign, Granted, Served }

    public enum Edge { Start, End, Inside }

    /// <summary>1 to 12 regions of several kinds, with gaps and touching, of whole pages and odd sizes, high up now and then.</summary>
    public static Arbitrary<MemoryHistory> Arbitrary()
    {
        var part = from backing in Gen.Frequency((40, Gen.Constant(Backing.Anonymous)), (10, Gen.Constant(Backing.Memfd)), (9, Gen.Constant(Backing.File)), (10, Gen.Constant(Backing.Window)), (10, Gen.Constant(Backing.Pread)), (10, Gen.Constant(Backing.Foreign)), (10, Gen.Constant(Backing.Granted)), (1, Gen.Constant(Backing.Served)))
                   from size in Gen.Frequency((1, Gen.Choose(1, 16383)), (2, Gen.Choose(1, 3).Select(static pages => pages * 4096)))
                   from gap in Gen.Frequency((1, Gen.Constant(0)), (1, Gen.Choose(1, 8191)))
                   select new Part(backing, (ushort)size, (ushort)gap);
        var place = from region in Gen.Choose(0, 11)
                    from edge in Gen.Frequency((1, Gen.Constant(Edge.Start)), (1, Gen.Constant(Edge.End)), (2, Gen.Constant(Edge.Inside)))
                    from offset in Gen.Choose(0, 16383)
                    from before in Gen.Frequency((1, Gen.Constant(0)), (1, Gen.Choose(0, 19)))
                    select new Place((byte)region, edge, (ushort)offset, (byte)before);
        var length = Gen.OneOf(Gen.Choose(0, 16), Gen.Choose(0, 4 * 4096), Gen.Choose(0, 20 * 4096), Gen.Choose(0, 199));
        var step = from operation in Gen.Elements(Enum.GetValues<Operation>())
                   from at in place
                   from other in place
                   from count in length
                   from available in Gen.OneOf(Gen.Constant(uint.MaxValue), Gen.Choose(0, 20 * 4096).Select(static value => (uint)value))
                   from piece in Gen.Choose(0, 4998)
                   from content in Gen.Choose(0, int.MaxValue)
                   select new Step(operation, at, other, (uint)count, available, (ushort)piece, content);
        var history = from start in Gen.Choose(0, 3)
                      from count in Gen.Choose(1, 12)
                      from parts in part.ArrayOf(count)
                      from steps in step.ArrayOf(40)
                      select new MemoryHistory((byte)start, parts, steps);
        return Arb.From(history, ArbMap.Default.ArbFor<MemoryHistory>().Shrinker);
    }

    /// <summary>Where the regions lie. What a handler serves has whole pages; what this host cannot serve is anonymous.</summary>
    public (string Backing, ulong Address, ulong Size)[] Layout(int page)
    {
        var address = Start == 3 ? ulong.MaxValue - (1UL << 30) : Start * 0x1000UL;
        Part[] parts = Parts is { Length: > 0 } ? Parts : [default];
        return [.. parts.Select(part =>
        {
            var backing = part.Backing == Backing.Served && !Needs.Userfaultfd ? Backing.Anonymous : part.Backing;
            var size = Math.Max(1UL, part.Size);
            if (backing == Backing.Served) size = (size + (ulong)page - 1) / (ulong)page * (ulong)page;
            var at = address;
            address += size + part.Gap;
            return (backing.ToString().ToLowerInvariant(), at, size);
        })];
    }

    public override string ToString() => $"Start = {Start}, Parts = {Stress.List(Parts)}, Steps = {Stress.List(Steps)}";

    public readonly record struct Part(Backing Backing, ushort Size, ushort Gap);

    public readonly record struct Place(byte Region, Edge Edge, ushort Offset, byte Before);

    public readonly record struct Step(Operation Operation, Place At, Place Other, uint Length, uint Available, ushort Piece, int Content);
}
