using System.Runtime.InteropServices;

namespace GuestMemory.Core.Images;

/// <summary>What an ELF core file says besides the memory (<see cref="ElfCoreWriter"/>).</summary>
public sealed record ElfCoreOptions
{
    /// <summary>The architecture of the guest, X64 or Arm64; null: what the guest's VMCOREINFO says, or else the host's.</summary>
    public Architecture? Architecture { get; init; }

    /// <summary>
    /// The general registers of each CPU, in the order of the kernel's <c>struct user_regs_struct</c>: 27 words on x86-64 (r15 first, gs last), 34 on aarch64 (x0 to x30, sp, pc, pstate).
    /// Each makes a note NT_PRSTATUS, a thread to a debugger. None where they are not known. They need <see cref="Architecture"/> where the guest has another than the host.
    /// </summary>
    public IReadOnlyList<ReadOnlyMemory<ulong>> Registers { get; init; } = [];
}
