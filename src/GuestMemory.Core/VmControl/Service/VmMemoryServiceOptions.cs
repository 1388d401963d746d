namespace GuestMemory.Core.VmControl;

/// <summary>Where a service takes requests, and for whom.</summary>
public sealed class VmMemoryServiceOptions
{
    /// <summary>Where it listens; at most 107 bytes. Null for a service that serves only the tubes it is given.</summary>
    public string? SocketPath { get; init; }

    /// <summary>Further users, by name or number, whose processes may connect; this one's and root's always may.</summary>
    public IReadOnlyList<string> AllowUser { get; init; } = [];

    /// <summary>Groups, by name or number, whose members' processes may connect.</summary>
    public IReadOnlyList<string> AllowGroup { get; init; } = [];

    /// <summary>Replaces a socket on which no process listens, and also listens in a directory where every user may replace the socket.</summary>
    public bool Force { get; init; }

    /// <summary>How long a client may take to send the file mappings that it announced, all of them together; unless given, as the context says.</summary>
    public TimeSpan? FileMappingTimeout { get; init; }

    /// <summary>Whether the devices that connect are behind the virtio-iommu.</summary>
    public bool ExposeWithViommu { get; init; }
}
