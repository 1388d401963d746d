using System.Buffers.Binary;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Store;

/// <summary>
/// An object of a store that holds chunks: 16 bytes of header ("GMPACK01" and a random salt), the chunks, an entry of 48 bytes for each, and a footer
/// of 32 bytes. docs/image-format.md has the bytes. Its key is the SHA-256 of all of it.
/// </summary>
internal sealed class ChunkPack
{
    public const string Prefix = "packs/";
    public const int HeaderSize = 16;
    public const int EntrySize = 48;
    public const int FooterSize = 32;

    private const int MostChunks = 1 << 16;

    private readonly List<(ChunkDigest Digest, uint Offset, uint Stored, uint Plain, ImageCompression Compression)> _entries = [];
    private readonly byte[] _chunks;
    private readonly int _limit;
    private int _filled;

    /// <param name="size">The bytes of chunks after which it is full.</param>
    /// <param name="chunkSize">The bytes of the largest chunk.</param>
    public ChunkPack(int size, int chunkSize)
    {
        _limit = size;
        _chunks = GC.AllocateUninitializedArray<byte>(size + chunkSize);
    }

    public bool IsEmpty => _entries.Count == 0;

    public bool IsFull => _filled >= _limit || _entries.Count >= MostChunks;

    public static string KeyOf(ChunkDigest digest) => digest.ToString() is var name ? $"{Prefix}{name[..2]}/{name}" : "";

    /// <summary>The digest that a key of a pack holds; null where it is no such key.</summary>
    public static ChunkDigest? DigestOf(string key) => DigestOfName(key[(key.LastIndexOf('/') + 1)..]);

    /// <summary>The digest that a name is; null where it is none.</summary>
    public static ChunkDigest? DigestOfName(string name)
    {
        Span<byte> bytes = stackalloc byte[ChunkDigest.Size];
        return name.Length == 2 * ChunkDigest.Size && Convert.FromHexString(name, bytes, out _, out var written) == System.Buffers.OperationStatus.Done && written == ChunkDigest.Size ? new ChunkDigest(bytes) : null;
    }

    /// <summary>Adds a chunk; the result is its offset in the object.</summary>
    public uint Add(ChunkDigest digest, ReadOnlySpan<byte> stored, int plain, ImageCompression compression)
    {
        var offset = (uint)(HeaderSize + _filled);
        stored.CopyTo(_chunks.AsSpan(_filled));
        _filled += stored.Length;
        _entries.Add((digest, offset, (uint)stored.Length, (uint)plain, compression));
        return offset;
    }

    /// <summary>The object, after which the next one begins.</summary>
    /// <param name="salt">Makes its digest another one than that of every other pack, also of the same chunks.</param>
    public byte[] Complete(ulong salt)
    {
        var index = HeaderSize + _filled;
        var bytes = GC.AllocateUninitializedArray<byte>(index + (_entries.Count * EntrySize) + FooterSize);
        "GMPACK01"u8.CopyTo(bytes);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(8), salt);
        _chunks.AsSpan(0, _filled).CopyTo(bytes.AsSpan(HeaderSize));
        var rest = bytes.AsSpan(index);
        rest.Clear();
        foreach (var entry in _entries)
        {
            entry.Digest.CopyTo(rest);
            BinaryPrimitives.WriteUInt32LittleEndian(rest[32..], entry.Offset);
            BinaryPrimitives.WriteUInt32LittleEndian(rest[36..], entry.Stored);
            BinaryPrimitives.WriteUInt32LittleEndian(rest[40..], entry.Plain);
            BinaryPrimitives.WriteUInt32LittleEndian(rest[44..], (uint)entry.Compression);
            rest = rest[EntrySize..];
        }

        BinaryPrimitives.WriteUInt32LittleEndian(rest, (uint)index);
        BinaryPrimitives.WriteUInt32LittleEndian(rest[4..], (uint)_entries.Count);
        BinaryPrimitives.WriteUInt32LittleEndian(rest[8..], ChunkedImage.Crc(bytes.AsSpan(index, _entries.Count * EntrySize)));
        "GMPKEND1"u8.CopyTo(rest[24..]);
        return bytes;
    }

    /// <summary>Forgets the chunks, for the next object.</summary>
    public void Clear()
    {
        _entries.Clear();
        _filled = 0;
    }
}
