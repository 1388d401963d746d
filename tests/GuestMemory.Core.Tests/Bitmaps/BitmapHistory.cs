using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>A bitmap of some size, and what is done to it. Every value of the fields means something, so that a failing history can be made short.</summary>
public sealed record BitmapHistory(byte Page, uint Bytes, BitmapHistory.Step[] Steps, ushort From, ushort Buffer)
{
    private static readonly ulong[] s_pageSizes = [1, 2, 3, 7, 64, 100, 128, 4096, 5000];

    public enum Operation { MarkDirty, ResetRange, SetBit, ResetBit, Enlarge, GetAndReset, Reset, Clone }

    public enum Reach { Some, Page, Nothing, Everything, UpToTheEndOfAddresses }

    public ulong PageSize => s_pageSizes[Page % s_pageSizes.Length];

    /// <summary>Bytes that are tracked: at most 700 pages.</summary>
    public ulong Size => Bytes % (PageSize * 700);

    /// <summary>Elements of the buffer through which all is listed; at least one.</summary>
    public int BufferLength => Math.Max(1, (int)Buffer);

    public static Arbitrary<BitmapHistory> Arbitrary()
    {
        var number = Gen.Choose(0, int.MaxValue).Select(static value => (uint)value);
        var step = from operation in Gen.Frequency(
                       (9, Gen.Constant(Operation.MarkDirty)), (6, Gen.Constant(Operation.ResetRange)), (2, Gen.Constant(Operation.SetBit)), (2, Gen.Constant(Operation.ResetBit)),
                       (3, Gen.Constant(Operation.Enlarge)), (1, Gen.Constant(Operation.GetAndReset)), (1, Gen.Constant(Operation.Reset)), (4, Gen.Constant(Operation.Clone)))
                   from offset in number
                   from reach in Gen.Frequency((4, Gen.Constant(Reach.Some)), (4, Gen.Elements(Reach.Page, Reach.Nothing, Reach.Everything, Reach.UpToTheEndOfAddresses)))
                   from length in number
                   from probe in number
                   select new Step(operation, offset, reach, length, probe);
        var history = from page in Gen.Choose(0, s_pageSizes.Length - 1)
                      from bytes in number
                      from steps in step.ArrayOf(30)
                      from start in Gen.Choose(0, ushort.MaxValue)
                      from buffer in BitmapContent.BufferLengths
                      select new BitmapHistory((byte)page, bytes, steps, (ushort)start, (ushort)buffer);
        return Arb.From(history, ArbMap.Default.ArbFor<BitmapHistory>().Shrinker);
    }

    public override string ToString() => $"PageSize = {PageSize}, Size = {Size}, From = {From}, Buffer = {BufferLength}, Steps = {Stress.List(Steps)}";

    public readonly record struct Step(Operation Operation, uint Offset, Reach Reach, uint Length, uint Probe)
    {
        /// <summary>Where it begins: inside, or a little behind the end.</summary>
        public ulong OffsetIn(ulong size) => Offset % (size + (size / 8) + 2);

        public ulong LengthIn(ulong size, ulong page) => Reach switch
        {
            Reach.Page => page,
            Reach.Nothing => 0,
            Reach.Everything => ulong.MaxValue,
            Reach.UpToTheEndOfAddresses => unchecked(0 - OffsetIn(size)),
            _ => Length % (size + 2),
        };
    }
}
