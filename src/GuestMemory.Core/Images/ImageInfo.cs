namespace GuestMemory.Core.Images;

/// <summary>How memory is laid down in a file.</summary>
public enum ImageFormat
{
    /// <summary>The regions one behind the other, in full; pages of zeros are holes in the file. What Firecracker calls a full memory file.</summary>
    Raw,
    /// <summary>The same layout, with only the pages that are dirty: patched into a base image, or alone in a sparse file.</summary>
    Diff,
    /// <summary>The regions one behind the other, in chunks that are compressed independently; read by a page-fault handler alone.</summary>
    Chunked,
}

/// <summary>What an export wrote.</summary>
/// <param name="Path">The file.</param>
/// <param name="Format">Its format.</param>
/// <param name="Size">Its length in bytes: the sum of the regions' sizes.</param>
/// <param name="BytesWritten">The bytes that were written; the rest is holes, or as it was.</param>
/// <param name="PageCount">The pages that were written, of the host's page size.</param>
/// <param name="Digest">The SHA-256 of the whole image in lower-case hexadecimal, where it was asked for.</param>
public sealed record ImageInfo(string Path, ImageFormat Format, ulong Size, ulong BytesWritten, long PageCount, string? Digest);
