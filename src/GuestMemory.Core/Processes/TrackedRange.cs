using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>What a <see cref="ProcessDirtyTracker"/> is to track. Whoever opened the process disposes it where no tracker is made.</summary>
/// <param name="ProcessId">The process.</param>
/// <param name="Process">The same, which no other process can be mistaken for.</param>
/// <param name="Address">The first address.</param>
/// <param name="Size">The length in bytes.</param>
/// <param name="PageSize">The page size of the mappings.</param>
internal sealed record TrackedRange(int ProcessId, SafeDescriptor Process, ulong Address, ulong Size, ulong PageSize);
