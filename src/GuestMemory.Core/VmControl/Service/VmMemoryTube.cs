namespace GuestMemory.Core;

/// <summary>A tube that is served, and what its peer may do (crosvm's <c>VmMemoryTube</c>).</summary>
internal sealed record VmMemoryTube(Tube Tube, bool RemotePeer, bool ExposeWithViommu);
