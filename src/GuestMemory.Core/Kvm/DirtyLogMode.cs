namespace GuestMemory.Core.Kvm;

/// <summary>How KVM tells which pages a guest wrote.</summary>
public enum DirtyLogMode
{
    /// <summary>A bitmap for each slot; KVM write-protects the pages again when their marks are taken (KVM_CLEAR_DIRTY_LOG).</summary>
    ManualProtect,

    /// <summary>The same, but every page is dirty at first, so that nothing needs to be protected when logging begins.</summary>
    InitiallySet,

    /// <summary>A bitmap a slot that is emptied, and all of its pages write-protected again, whenever it is read.</summary>
    Plain,

    /// <summary>A ring a vCPU that lists the pages in the order in which they were written.</summary>
    Ring,
}
