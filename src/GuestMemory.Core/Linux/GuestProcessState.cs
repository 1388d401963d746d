namespace GuestMemory.Core.Linux;

/// <summary>What a process of a guest does, as ps says it.</summary>
public enum GuestProcessState
{
    /// <summary>R: it runs, or can run.</summary>
    Running,
    /// <summary>S: it waits, and a signal wakes it.</summary>
    Sleeping,
    /// <summary>D: it waits, and nothing else wakes it.</summary>
    Uninterruptible,
    /// <summary>I: a thread of the kernel that has nothing to do.</summary>
    Idle,
    /// <summary>T: stopped by a signal.</summary>
    Stopped,
    /// <summary>t: stopped by a debugger.</summary>
    Traced,
    /// <summary>P: a thread of the kernel that is parked.</summary>
    Parked,
    /// <summary>Z: it has ended, and its parent has not asked how.</summary>
    Zombie,
    /// <summary>X: it is about to be gone.</summary>
    Dead,
}
