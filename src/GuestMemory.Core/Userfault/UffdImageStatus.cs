namespace GuestMemory.Core.Userfault;

/// <summary>What a handler says of one of its images at one moment.</summary>
internal sealed record UffdImageStatus
{
    public required UffdImageOptions Options { get; init; }

    public UffdImageState State { get; init; }

    /// <summary>VMs that are served from it.</summary>
    public int ConnectionCount { get; init; }

    /// <summary>Why it cannot be served; null where it can.</summary>
    public string? Error { get; init; }
}
