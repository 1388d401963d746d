using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>How a memory is served, and what two threads do to pages of their own meanwhile.</summary>
public sealed record ServedHistory(UffdStrategy Strategy, byte Window, bool TrackDirty, bool Memfd, int Order, ushort Recorded, ServedHistory.Step[] First, ServedHistory.Step[] Second)
{
    public enum Operation { Read, Write, Discard }

    /// <summary>The steps of both threads.</summary>
    public Step[][] Steps => [First, Second];

    public static Arbitrary<ServedHistory> Arbitrary(int pages)
    {
        var step = from operation in Gen.Frequency((4, Gen.Constant(Operation.Read)), (1, Gen.Constant(Operation.Write)), (1, Gen.Constant(Operation.Discard)))
                   from block in Gen.Choose(0, (pages / 16) - 1)
                   from page in Gen.Choose(0, 7)
                   from value in Gen.Choose(0, 999)
                   select new Step(operation, (byte)block, (byte)page, (ushort)value);
        var history = from strategy in Gen.Elements(UffdStrategy.OnDemand, UffdStrategy.Background, UffdStrategy.FaultAll, UffdStrategy.Window, UffdStrategy.Replay)
                      from window in Gen.Choose(0, 5)
                      from track in Gen.Elements(true, false)
                      from memfd in Gen.Elements(true, false)
                      from order in Gen.Choose(0, int.MaxValue)
                      from recorded in Gen.Choose(0, pages - 1)
                      from first in step.ArrayOf(1500)
                      from second in step.ArrayOf(1500)
                      select new ServedHistory(strategy, (byte)window, track, memfd, order, (ushort)recorded, first, second);
        return Arb.From(history, ArbMap.Default.ArbFor<ServedHistory>().Shrinker);
    }

    /// <summary>The pages that a record for the strategy Replay has, in an order of its own.</summary>
    public uint[] Touches(int pages)
    {
        var touches = Enumerable.Range(0, pages).Select(static page => (uint)page).ToArray();
        new Random(Order).Shuffle(touches);
        return touches[..(Recorded % pages)];
    }

    public override string ToString() =>
        $"{Strategy}, Window = {Window}, TrackDirty = {TrackDirty}, Memfd = {Memfd}, Order = {Order}, Recorded = {Recorded}, First = {Stress.List(First)}, Second = {Stress.List(Second)}";

    public readonly record struct Step(Operation Operation, byte Block, byte Page, ushort Value);
}
