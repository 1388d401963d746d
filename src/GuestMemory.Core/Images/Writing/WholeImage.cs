namespace GuestMemory.Core.Images;

/// <summary>What every format that holds the whole memory has in common: the checks, the hidden file that is renamed when it is complete, and the digest beside it.</summary>
internal static class WholeImage
{
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="format">Its format.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="digest">Whether to compute the SHA-256, and to write it beside the file.</param>
    /// <param name="isSparse">Whether the file takes the room of the pages that are not zero, and so is known before to fit or not; that of compressed pages is not.</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends it; what was written is removed.</param>
    /// <param name="write">Writes the file.</param>
    public static ImageInfo Write(GuestMemoryMmap memory, string path, ImageFormat format, bool overwrite, bool digest, bool isSparse, Action<ulong>? progress, CancellationToken cancellation, Action<ImageOutput, RegionReader> write)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ImageTarget.Check(memory, path, overwrite);
        if (digest) DigestSidecar.RequirePlace(path, overwrite);
        if (isSparse) ImageTarget.RequireSpaceFor(memory, path, cancellation);
        string? hash = null;
        var (bytes, pages) = RawImage.WriteBeside(path, 0, overwrite, file =>
        {
            using var output = new ImageOutput(file, digest);
            write(output, new RegionReader(memory, progress, cancellation));
            hash = output.Finish(cancellation);
            return output.Written;
        }, cancellation);
        // The image has its place already. Where this fails it stays there, and nothing beside it claims to be its digest.
        if (hash is not null) DigestSidecar.Write(path, hash);
        return new ImageInfo(path, format, memory.Size, bytes, pages, hash);
    }
}
