namespace GuestMemory.Core.Tests;

/// <summary>What of the product's is open in this process.</summary>
internal readonly record struct HostResources(int Descriptors, int Threads);
