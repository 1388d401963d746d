namespace GuestMemory.Core.Kvm;

/// <summary>How a vCPU left the guest.</summary>
/// <param name="Reason">The reason.</param>
/// <param name="Address">The port, or the guest physical address.</param>
/// <param name="Size">The bytes of the access: 1, 2, 4 or 8.</param>
/// <param name="IsWrite">Whether the guest writes. A read is answered by <see cref="KvmVcpu.SetReadValue"/>.</param>
/// <param name="Value">The value that it writes; the first one of a repeated instruction.</param>
public readonly record struct KvmExit(KvmExitReason Reason, ulong Address = 0, uint Size = 0, bool IsWrite = false, ulong Value = 0);
