using System.Buffers.Binary;
using System.Collections.Concurrent;

namespace GuestMemory.Core.Store;

/// <summary>
/// The chunks that a store has. Each upload leaves an object index/ID with those that it added: "GMINDEX1", the number of entries, zeros, and
/// entries of 80 bytes: the chunk's digest, its pack's, its offset there, its stored bytes, its compression, zeros; at the end the SHA-256 of all.
/// </summary>
internal sealed class ChunkIndex
{
    public const string Prefix = "index/";

    private const int HeaderSize = 16;
    private const int EntrySize = 80;
    private const int MaxSize = 1 << 30;

    private readonly Dictionary<ChunkDigest, ChunkPlace> _places = [];

    public int Count => _places.Count;

    public bool TryFind(ChunkDigest digest, out ChunkPlace place) => _places.TryGetValue(digest, out place);

    /// <summary>Reads what all uploads have left.</summary>
    /// <param name="store">The store.</param>
    /// <param name="isUsable">Whether a pack may be counted on.</param>
    /// <param name="cancellation">Abandons it.</param>
    public static async Task<ChunkIndex> LoadAsync(ObjectStore store, Func<ChunkDigest, bool> isUsable, CancellationToken cancellation)
    {
        var index = new ChunkIndex();
        var parts = new ConcurrentBag<List<(ChunkDigest, ChunkPlace)>>();
        await Parallel.ForEachAsync(await store.ListAsync(Prefix, cancellation), new ParallelOptions { MaxDegreeOfParallelism = 8, CancellationToken = cancellation }, async (entry, token) =>
        {
            if (await TryReadAsync(store, entry.Key, token) is { Entries: var entries }) parts.Add(entries);
        });
        foreach (var part in parts)
        {
            foreach (var (digest, place) in part)
            {
                if (isUsable(place.Pack)) index._places[digest] = place;
            }
        }

        return index;
    }

    /// <summary>Reads one object; null where it was removed. One that is damaged says nothing: without it chunks are uploaded again, which is right, too.</summary>
    public static async Task<(List<(ChunkDigest Digest, ChunkPlace Place)> Entries, string Version)?> TryReadAsync(ObjectStore store, string key, CancellationToken cancellation) =>
        await store.TryReadAsync(key, MaxSize, cancellation) is { } found ? (Parse(found.Content), found.Version) : null;

    /// <summary>Leaves chunks that an upload has added.</summary>
    public static async Task WriteAsync(ObjectStore store, IReadOnlyList<(ChunkDigest Digest, ChunkPlace Place)> entries, CancellationToken cancellation)
    {
        if (entries.Count > 0) await store.TryCreateAsync($"{Prefix}{Guid.NewGuid():N}", ToBytes(entries), cancellation);
    }

    /// <summary>The bytes of such an object.</summary>
    public static byte[] ToBytes(IReadOnlyList<(ChunkDigest Digest, ChunkPlace Place)> entries)
    {
        var bytes = new byte[checked(HeaderSize + (entries.Count * EntrySize) + ChunkDigest.Size)];
        "GMINDEX1"u8.CopyTo(bytes);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(8), entries.Count);
        for (var i = 0; i < entries.Count; i++)
        {
            var (digest, place) = entries[i];
            var entry = bytes.AsSpan(HeaderSize + (i * EntrySize), EntrySize);
            digest.CopyTo(entry);
            place.Pack.CopyTo(entry[32..]);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[64..], place.Offset);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[68..], place.Stored);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[72..], (uint)place.Compression);
        }

        ChunkDigest.Of(bytes.AsSpan(0, bytes.Length - ChunkDigest.Size)).CopyTo(bytes.AsSpan(bytes.Length - ChunkDigest.Size));
        return bytes;
    }

    private static List<(ChunkDigest, ChunkPlace)> Parse(byte[] bytes)
    {
        var entries = new List<(ChunkDigest, ChunkPlace)>();
        if (bytes.Length < HeaderSize + ChunkDigest.Size || (bytes.Length - HeaderSize - ChunkDigest.Size) % EntrySize != 0 || !bytes.AsSpan(0, 8).SequenceEqual("GMINDEX1"u8)) return entries;
        if (new ChunkDigest(bytes.AsSpan(bytes.Length - ChunkDigest.Size)) != ChunkDigest.Of(bytes.AsSpan(0, bytes.Length - ChunkDigest.Size))) return entries;
        for (var at = HeaderSize; at < bytes.Length - ChunkDigest.Size; at += EntrySize)
        {
            var entry = bytes.AsSpan(at, EntrySize);
            var compression = (ImageCompression)BinaryPrimitives.ReadUInt32LittleEndian(entry[72..]);
            if (!Enum.IsDefined(compression)) continue;
            entries.Add((new ChunkDigest(entry[..32]), new ChunkPlace(new ChunkDigest(entry[32..64]),
                BinaryPrimitives.ReadUInt32LittleEndian(entry[64..]), BinaryPrimitives.ReadUInt32LittleEndian(entry[68..]), compression)));
        }

        return entries;
    }
}
