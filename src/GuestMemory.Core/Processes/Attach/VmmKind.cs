namespace GuestMemory.Core.Processes;

/// <summary>Which VMM a process runs.</summary>
internal enum VmmKind
{
    Other,
    Qemu,
    Firecracker,
    CloudHypervisor,
    Crosvm,
}
