namespace GuestMemory.Core.Kvm;

/// <summary>How a vCPU left the guest.</summary>
/// <param name="Reason">Why.</param>
/// <param name="Address">The port, or the guest physical address.</param>
/// <param name="Size">The bytes of the access: 1, 2, 4 or 8.</param>
/// <param name="IsWrite">Whether the guest writes. Where it reads, <see cref="KvmVcpu.SetReadValue"/> answers.</param>
/// <param name="Value">What it writes; of an instruction that repeats itself, the first.</param>
public readonly record struct KvmExit(KvmExitReason Reason, ulong Address = 0, uint Size = 0, bool IsWrite = false, ulong Value = 0);
