namespace GuestMemory.Core.Store;

/// <summary>Where in a store a chunk is.</summary>
/// <param name="Pack">The object.</param>
/// <param name="Offset">Its first byte there.</param>
/// <param name="Stored">Its bytes there.</param>
/// <param name="Compression">How they are packed.</param>
internal readonly record struct ChunkPlace(ChunkDigest Pack, uint Offset, uint Stored, ImageCompression Compression);
