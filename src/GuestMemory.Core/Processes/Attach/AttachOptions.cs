namespace GuestMemory.Core.Processes;

/// <summary>How <see cref="AttachedProcess.Attach"/> goes about it.</summary>
public sealed record AttachOptions
{
    /// <summary>Whether the memory may be written.</summary>
    public bool IsWritable { get; init; }

    /// <summary>Whether the process is stopped while a <see cref="GuestMemoryMmap.Hold"/> lasts.</summary>
    public bool Pauses { get; init; }

    /// <summary>Where the memory lies in the guest; empty: it is found out.</summary>
    public IReadOnlyList<GuestLayoutRange> Layout { get; init; } = [];

    /// <summary>The Unix socket of a QMP monitor of QEMU; null: one that the command line names, where it answers.</summary>
    public string? MonitorPath { get; init; }

    /// <summary>Ends the search, which asks another process and may wait for it.</summary>
    public CancellationToken Cancellation { get; init; }

    /// <summary>The name of each region, by the VMM's name ("qemu"), the process and the place of the region; null: "qemu1234-0".</summary>
    public Func<string, int, int, string>? Name { get; init; }
}
