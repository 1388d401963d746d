using GuestMemory.Core.Paging;

namespace GuestMemory.Core.Linux;

/// <summary>What <see cref="KernelFinder"/> found; see <see cref="GuestKernel"/>.</summary>
internal sealed class KernelFacts
{
    public required GuestVirtualMemory Space { get; init; }

    public required ulong Delta { get; init; }

    public required string Release { get; init; }

    public required string Version { get; init; }

    public required string NodeName { get; init; }

    public string? Banner { get; init; }

    public required ulong Address { get; init; }

    public ulong? KaslrOffset { get; init; }

    public ulong? PhysicalKaslrOffset { get; init; }

    public required Lazy<Kallsyms> Symbols { get; init; }

    public required int SymbolCount { get; init; }

    public (ulong Address, ulong Size)? Btf { get; init; }

    public string? VmcoreInfo { get; init; }
}
