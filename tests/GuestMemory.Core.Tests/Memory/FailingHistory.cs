using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>Accesses to memory that fails now and then. Every value of the fields means something, so that a history can be made shorter.</summary>
public sealed record FailingHistory(bool Copies, FailingHistory.Step[] Steps)
{
    public static Arbitrary<FailingHistory> Arbitrary()
    {
        var step = from at in Gen.Choose(0, ushort.MaxValue)
                   from length in Gen.Choose(0, 0x17ff)
                   from memory in Gen.Choose(0, 2)
                   from failAt in Gen.Choose(0, 3)
                   from way in Gen.Choose(0, 9)
                   from content in Gen.Choose(0, int.MaxValue)
                   select new Step((ushort)at, (ushort)length, (byte)memory, (byte)failAt, (byte)way, content);
        var history = from copies in Gen.Elements(true, false)
                      from steps in step.ArrayOf(60)
                      select new FailingHistory(copies, steps);
        return Arb.From(history, ArbMap.Default.ArbFor<FailingHistory>().Shrinker);
    }

    public override string ToString() => $"Copies = {Copies}, Steps = {Stress.List(Steps)}";

    public readonly record struct Step(ushort At, ushort Length, byte Memory, byte FailAt, byte Way, int Content);
}
