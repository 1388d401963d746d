namespace GuestMemory.Core.Images;

/// <summary>Reads the regions of a memory one after the other, for a writer of images, and tells how far it is.</summary>
internal sealed class RegionReader(GuestMemoryMmap memory, Action<ulong>? progress, CancellationToken cancellation)
{
    private ulong _before;

    /// <summary>Passes all of a region on in pieces of at most 1 MiB, each but the last a multiple of every ordinary page size.</summary>
    /// <param name="region">The region.</param>
    /// <param name="use">Takes the guest address of a piece, and the piece.</param>
    public void Copy(GuestMemoryRegion region, Action<ulong, ReadOnlySpan<byte>> use)
    {
        RawImage.Copy(memory, region.GuestAddress, region.Size, (at, piece) =>
        {
            use(at, piece);
            progress?.Invoke(_before + (at - region.GuestAddress) + (ulong)piece.Length);
        }, cancellation);
        _before += region.Size;
    }
}
