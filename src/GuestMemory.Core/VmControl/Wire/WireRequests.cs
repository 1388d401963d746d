using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

// What stands in the wire's JSON of each request that has members. VmMemoryRequest itself shows PowerShell a dictionary, which
// System.Text.Json would write as one.

internal sealed record WirePrepare(Alloc Alloc, MemCacheType Cache);

internal sealed record WireRegister(VmMemorySource Source, VmMemoryDestination Dest, MemoryProtection Prot, MemCacheType Cache);

internal sealed record WireMmap(SharedMemory Shm, VmMemoryDestination Dest, ulong NumFileMappings);

internal sealed record WireRanges(IReadOnlyList<VmMemoryRange> Ranges);

internal sealed record WireSize(ulong Size);
