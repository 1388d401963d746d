using System.Security.Cryptography;

namespace GuestMemory.Core.Store;

/// <summary>How an image is published.</summary>
public sealed record PublishOptions
{
    /// <summary>The bytes of a chunk where nothing else is said.</summary>
    public const int DefaultChunkSize = 256 << 10;

    /// <summary>The bytes of a chunk: a power of two from 4 KiB to 16 MiB. Only chunks of one size are shared.</summary>
    public int ChunkSize { get; init; } = DefaultChunkSize;

    /// <summary>How chunks are compressed that the store does not have.</summary>
    public ImageCompression Compression { get; init; } = ImageCompression.LZ4;

    /// <summary>An ECDSA key on the curve P-256 that signs the manifest; null for none.</summary>
    public ECDsa? SigningKey { get; init; }

    /// <summary>The touch record that is to travel with the image; empty for none.</summary>
    public ReadOnlyMemory<byte> Record { get; init; }

    /// <summary>Told the bytes of memory done.</summary>
    public IProgress<ulong>? Progress { get; init; }
}
