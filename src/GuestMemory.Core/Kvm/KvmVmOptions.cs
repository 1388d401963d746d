namespace GuestMemory.Core.Kvm;

/// <summary>How a VM is made.</summary>
public sealed record KvmVmOptions
{
    /// <summary>A name for people; unless given, the VM's number.</summary>
    public string? Name { get; init; }

    /// <summary>Logs the pages of the base memory that the guest writes; memory that is added later says so itself.</summary>
    public bool LogDirtyPages { get; init; }

    /// <summary>How written pages are logged.</summary>
    public DirtyLogMode DirtyLog { get; init; } = DirtyLogMode.ManualProtect;

    /// <summary>The entries of a vCPU's dirty ring: a power of two from 1024 to 65536.</summary>
    public uint DirtyRingEntries { get; init; } = 4096;
}
