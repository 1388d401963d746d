namespace GuestMemory.Core;

/// <summary>How a range of two memories differs.</summary>
public enum MemoryDifferenceKind
{
    /// <summary>Both memories have the range, with different bytes.</summary>
    Content,

    /// <summary>Only the first memory has the range.</summary>
    OnlyInFirst,

    /// <summary>Only the second memory has the range.</summary>
    OnlyInSecond,
}
