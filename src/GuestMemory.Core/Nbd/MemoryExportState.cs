namespace GuestMemory.Core.Nbd;

/// <summary>What becomes of a <see cref="MemoryExport"/>.</summary>
public enum MemoryExportState
{
    /// <summary>Clients can connect.</summary>
    Listening,

    /// <summary>It was stopped.</summary>
    Stopped,
}
