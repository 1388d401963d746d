namespace GuestMemory.Core;

/// <summary>What a comparison of two memories came to. Sizes are bytes.</summary>
/// <param name="ComparedSize">The bytes that both memories have.</param>
/// <param name="DifferentBytes">Of these, the bytes that are different.</param>
/// <param name="DifferentSize">The size of the ranges that hold them, in whole units of the granularity.</param>
/// <param name="RangeCount">How many ranges of different content there are.</param>
/// <param name="OnlyInFirst">The bytes that only the first memory has.</param>
/// <param name="OnlyInSecond">The bytes that only the second memory has.</param>
public sealed record MemoryComparisonSummary(ulong ComparedSize, ulong DifferentBytes, ulong DifferentSize, long RangeCount, ulong OnlyInFirst, ulong OnlyInSecond)
{
    /// <summary>Whether the memories have the same addresses and the same bytes.</summary>
    public bool AreEqual => RangeCount == 0 && OnlyInFirst == 0 && OnlyInSecond == 0;
}
