using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>Bits of some density, and where and through what buffer they are listed.</summary>
public sealed record BitmapContent(bool[] Bits, ushort From, ushort Buffer)
{
    /// <summary>Elements that the buffer has; at least one.</summary>
    public int BufferLength => Math.Max(1, (int)Buffer);

    public static Arbitrary<BitmapContent> Arbitrary()
    {
        var content = from density in Gen.Elements(2, 50, 500, 980)
                      from count in Gen.Choose(0, 1499)
                      from bits in Gen.Choose(0, 999).Select(value => value < density).ArrayOf(count)
                      from start in Gen.Choose(0, count + 99)
                      from buffer in BufferLengths
                      select new BitmapContent(bits, (ushort)start, (ushort)buffer);
        return Arb.From(content, ArbMap.Default.ArbFor<BitmapContent>().Shrinker);
    }

    public override string ToString() =>
        $"{Bits.Length} bits, From = {From}, Buffer = {BufferLength}, Set = {Stress.List([.. Enumerable.Range(0, Bits.Length).Where(bit => Bits[bit])])}";

    internal static Gen<int> BufferLengths => Gen.Frequency((1, Gen.Constant(2000)), (3, Gen.Choose(1, 199)));
}
