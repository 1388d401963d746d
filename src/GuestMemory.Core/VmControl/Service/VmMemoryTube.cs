namespace GuestMemory.Core.VmControl;

/// <summary>A tube that is served, and the rights of its peer (crosvm's <c>VmMemoryTube</c>).</summary>
internal sealed class VmMemoryTube(Tube tube, bool remotePeer, bool exposeWithViommu) : IDisposable
{
    public Tube Tube { get; } = tube;

    public bool RemotePeer { get; } = remotePeer;

    public bool ExposeWithViommu { get; } = exposeWithViommu;

    /// <summary>The request that is not answered yet; null between requests.</summary>
    public VmMemoryExchange? Exchange { get; set; }

    public void Dispose()
    {
        Exchange?.Dispose();
        Tube.Dispose();
    }
}
