using GuestMemory.Core.Paging;

namespace GuestMemory.Core.Linux;

/// <summary>A process of a Linux guest, or a thread of its kernel, as its memory had it when it was read. Its memory can be read by virtual addresses.</summary>
public sealed class GuestProcess : IVirtualMemorySource
{
    private readonly GuestKernel _kernel;

    internal GuestProcess(GuestKernel kernel) => _kernel = kernel;

    /// <summary>The number of the process (in the first PID namespace of the guest).</summary>
    public required int ProcessId { get; init; }

    /// <summary>That of its parent; null where that cannot be read.</summary>
    public int? ParentId { get; init; }

    /// <summary>The name, of at most 15 bytes.</summary>
    public required string Name { get; init; }

    /// <summary>The real user; null where it cannot be read.</summary>
    public uint? UserId { get; init; }

    /// <summary>What it does.</summary>
    public required GuestProcessState State { get; init; }

    /// <summary>The number of its threads; null where it cannot be read.</summary>
    public int? ThreadCount { get; init; }

    /// <summary>Whether it is a thread of the kernel.</summary>
    public required bool KernelThread { get; init; }

    /// <summary>The guest physical address of its page table; null where it has none: a thread of the kernel, or a process that has ended.</summary>
    public ulong? PageTable { get; init; }

    /// <summary>When it was started, counted from the boot; null where it cannot be read.</summary>
    public TimeSpan? StartTime { get; init; }

    /// <summary>The virtual address of its struct task_struct.</summary>
    public required ulong TaskAddress { get; init; }

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">PageNotPresent: the process has no memory of its own.</exception>
    public GuestVirtualMemory GetVirtualMemory(ulong virtualAddress)
    {
        // The kernel's part of the addresses is the same for all.
        if ((long)virtualAddress < 0 && (PageTable is null || _kernel.Architecture == GuestArchitecture.Arm64)) return _kernel.Space;
        return PageTable is { } table
            ? new GuestVirtualMemory(_kernel.Space.Memory, table, _kernel.Space.Format)
            : throw new GuestMemoryException(GuestMemoryError.PageNotPresent,
                $"Virtual address 0x{virtualAddress:x} is not mapped: process {ProcessId} ('{Name}') {(KernelThread ? "is a thread of the kernel" : "has ended")} and has no memory of its own.") { Address = virtualAddress };
    }

    /// <inheritdoc/>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => _kernel.GetRegions();

    /// <summary>Number and name, for debuggers and messages.</summary>
    public override string ToString() => $"{ProcessId} ({Name})";
}
