namespace GuestMemory.Core.Kvm;

/// <summary>Why a vCPU left the guest: KVM_EXIT_ of <c>linux/kvm.h</c>. Values without a name occur.</summary>
public enum KvmExitReason
{
    /// <summary>KVM does not say.</summary>
    Unknown = 0,

    /// <summary>An access to an I/O port.</summary>
    Io = 2,

    /// <summary>The instruction HLT.</summary>
    Hlt = 5,

    /// <summary>An access to an address without memory, or a write to read-only memory.</summary>
    Mmio = 6,

    /// <summary>The guest gave up: a triple fault.</summary>
    Shutdown = 8,

    /// <summary>The processor refused the vCPU's state.</summary>
    FailEntry = 9,

    /// <summary>KVM could not go on: an instruction it cannot emulate, or code where no memory is.</summary>
    InternalError = 17,
}
