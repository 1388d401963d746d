namespace GuestMemory.Core.Interop;

/// <summary>How C libraries start a thread (<c>clone(2)</c>), and what they and the runtime say of threads and mappings (<c>prctl(2)</c>).</summary>
internal static class ThreadFlags
{
    public const uint CLONE_VM = 0x100;
    public const uint CLONE_FS = 0x200;
    public const uint CLONE_FILES = 0x400;
    public const uint CLONE_SIGHAND = 0x800;
    public const uint CLONE_THREAD = 0x10000;
    public const uint CLONE_SYSVSEM = 0x40000;
    public const uint CLONE_SETTLS = 0x80000;
    public const uint CLONE_PARENT_SETTID = 0x100000;
    public const uint CLONE_CHILD_CLEARTID = 0x200000;
    public const uint CLONE_DETACHED = 0x400000;

    /// <summary>The name of the calling thread.</summary>
    public const uint PR_SET_NAME = 15;

    /// <summary>What a mapping is for.</summary>
    public const uint PR_SET_VMA = 0x53564d41;

    /// <summary>The flags that glibc gives clone(2).</summary>
    public const uint Start = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;

    /// <summary>Those of musl.</summary>
    public const uint MuslStart = Start | CLONE_DETACHED;
}
