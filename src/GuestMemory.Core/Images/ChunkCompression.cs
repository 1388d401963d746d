namespace GuestMemory.Core.Images;

/// <summary>How the chunks of an image are compressed.</summary>
public enum ChunkCompression
{
    /// <summary>Brotli: smaller, and unpacked without allocation while VMs are served.</summary>
    Brotli,
    /// <summary>zlib (RFC 1950), for images that other programs are to unpack.</summary>
    ZLib,
}
