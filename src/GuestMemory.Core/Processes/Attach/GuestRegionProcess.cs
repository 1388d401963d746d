namespace GuestMemory.Core.Processes;

/// <summary>Guest memory of another process, a VMM that was attached, at its guest physical address. Disposing of it ends the access; the process goes on.</summary>
public sealed class GuestRegionProcess : GuestMemoryRegion
{
    private readonly ProcessMemory _memory;

    internal GuestRegionProcess(ProcessMemory memory, GuestAddress guestAddress, string name)
        : base(memory, guestAddress, name) => _memory = memory;

    /// <summary>The process.</summary>
    public int ProcessId => _memory.Process.ProcessId;

    /// <summary>Where the memory is in the address space of the process.</summary>
    public ulong ProcessAddress => _memory.Address;

    /// <summary>The file behind it, as the process knows it ("/memfd:ram (deleted)"); null for memory of the process alone.</summary>
    public string? BackingPath => _memory.BackingPath;

    /// <summary>Whether the process has ended; then every access fails.</summary>
    public bool HasEnded => IsDisposed || _memory.Process.HasEnded;

    internal override IMemoryProcess Process => _memory.Process;
}
