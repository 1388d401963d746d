namespace GuestMemory.Core.Nbd;

/// <summary>How memory is exported.</summary>
public sealed record MemoryExportOptions
{
    /// <summary>The name of the export, which a client may leave out; at most 4096 bytes.</summary>
    public required string Name { get; init; }

    /// <summary>The Unix socket to listen at; null for a port.</summary>
    public string? SocketPath { get; init; }

    /// <summary>The port of 127.0.0.1 to listen at, where <see cref="SocketPath"/> is null; 0 for one that is free.</summary>
    public int Port { get; init; }

    /// <summary>Whether the regions lie one behind the other, as in a raw image; else each byte has its guest address as its offset.</summary>
    public bool IsPacked { get; init; }

    /// <summary>The users whose clients may connect beside root and the own one: names or numbers.</summary>
    public IReadOnlyList<string> AllowUser { get; init; } = [];

    /// <summary>Whether it listens also where every user may replace the socket.</summary>
    public bool Force { get; init; }

    /// <summary>How long a client may take for its negotiation.</summary>
    internal TimeSpan NegotiationLimit { get; init; } = TimeSpan.FromSeconds(10);
}
