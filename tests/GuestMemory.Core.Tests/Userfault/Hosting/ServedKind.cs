namespace GuestMemory.Core.Tests;

/// <summary>What a VM's memory is, and what its pages come from.</summary>
public enum ServedKind { OnDemand, Background, HugePages, Memfd, Layers, Chunked, Replay }
