namespace GuestMemory.Core.Store;

/// <summary>An image in a store, as a listing shows it.</summary>
/// <param name="Location">Where it is: the store, '/', its name, '@' and its generation.</param>
/// <param name="Name">Its name.</param>
/// <param name="Generation">Which image of that name it is, from 1 on.</param>
/// <param name="IsLatest">Whether the name alone stands for it.</param>
/// <param name="Size">The bytes of the memory.</param>
/// <param name="StoredSize">The bytes that its chunks take in the store; other images may have some of them, too.</param>
/// <param name="ChunkSize">The bytes of a chunk.</param>
/// <param name="ChunkCount">Its chunks.</param>
/// <param name="UniqueCount">Those of them that differ from one another and are not all zeros.</param>
/// <param name="Created">When it was published.</param>
/// <param name="Digest">The SHA-256 of its manifest, in lower-case hexadecimal.</param>
/// <param name="SigningKey">The SHA-256 of the public key that its manifest claims to be signed with; null where it is not signed.</param>
public sealed record StoredImage(string Location, string Name, ulong Generation, bool IsLatest, ulong Size, ulong StoredSize, int ChunkSize, int ChunkCount, int UniqueCount, DateTimeOffset Created, string Digest, string? SigningKey)
{
    /// <summary>The bytes that the upload added to the store; null where the image was not uploaded just now.</summary>
    public ulong? UploadedSize { get; init; }

    /// <summary>The different chunks that the store had before; null where the image was not uploaded just now.</summary>
    public int? SharedCount { get; init; }
}
