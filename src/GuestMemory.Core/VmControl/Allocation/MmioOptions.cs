namespace GuestMemory.Core.VmControl;

/// <summary>What an MMIO range should be like (crosvm's <c>AllocOptions</c>).</summary>
public sealed record MmioOptions
{
    /// <summary>Reading it has no effect; such ranges may lie above 4 GiB.</summary>
    public bool Prefetchable { get; init; }

    /// <summary>The highest address that the device can have; at least 0xffffffff.</summary>
    public ulong MaxAddress { get; init; } = ulong.MaxValue;

    /// <summary>A power of two in bytes; the page size unless given.</summary>
    public ulong? Alignment { get; init; }

    /// <summary>Whether the highest free addresses are taken instead of the lowest.</summary>
    public bool TopDown { get; init; }
}
