namespace GuestMemory.Core.Kvm;

/// <summary>Options of a <see cref="KvmVm"/>.</summary>
public sealed record KvmVmOptions
{
    /// <summary>The name; unless given, the VM's number.</summary>
    public string? Name { get; init; }

    /// <summary>Whether KVM logs the pages of the base memory that the guest writes; memory that is added later has an option of its own.</summary>
    public bool LogDirtyPages { get; init; }

    /// <summary>The kind of log of written pages.</summary>
    public DirtyLogMode DirtyLog { get; init; } = DirtyLogMode.ManualProtect;

    /// <summary>The entries of a vCPU's dirty ring: a power of two from 1024 to 65536.</summary>
    public uint DirtyRingEntries { get; init; } = 4096;
}
