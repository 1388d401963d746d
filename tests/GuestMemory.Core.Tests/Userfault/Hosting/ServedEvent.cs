namespace GuestMemory.Core.Tests;

/// <summary>What happens to the handler of a VM while it touches its memory.</summary>
public enum ServedEvent
{
    /// <summary>The worker is killed.</summary>
    WorkerDeath,

    /// <summary>Supervisor and workers are killed, as a service manager does where the main process has died, and are started with what it keeps.</summary>
    SupervisorDeath,

    /// <summary>The handler is handed to another process.</summary>
    Upgrade,
}
