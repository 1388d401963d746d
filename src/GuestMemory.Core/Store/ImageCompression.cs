namespace GuestMemory.Core.Store;

/// <summary>How a chunk of a stored image is compressed. A chunk that does not become smaller is stored as it is.</summary>
public enum ImageCompression
{
    /// <summary>Not at all.</summary>
    None,
    /// <summary>An LZ4 block: unpacked the fastest.</summary>
    LZ4,
    /// <summary>A Zstandard frame: smaller, and unpacked more slowly.</summary>
    Zstd,
}
