namespace GuestMemory.Core.VmControl;

/// <summary>The addresses that a VM has to give (crosvm's <c>SystemAllocatorConfig</c>).</summary>
public sealed record SystemAllocatorConfig
{
    /// <summary>Ports, at most up to 0xffff; null for a machine without.</summary>
    public AddressInterval? Io { get; init; }

    /// <summary>MMIO below 4 GiB.</summary>
    public required AddressInterval LowMmio { get; init; }

    /// <summary>MMIO above the memory.</summary>
    public required AddressInterval HighMmio { get; init; }

    /// <summary>MMIO for platform devices; null where there are none.</summary>
    public AddressInterval? PlatformMmio { get; init; }

    /// <summary>The first interrupt that may be given out; the last one is 1023.</summary>
    public uint FirstIrq { get; init; }
}
