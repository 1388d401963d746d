using System.Buffers;
using System.Buffers.Binary;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>The chunks of a <see cref="ChunkedImage"/>. Their positions are offsets in the memory.</summary>
internal sealed class ChunkedBlocks : ImageBlocks
{
    private readonly byte[] _index;
    private readonly int _chunkSize;
    private readonly ChunkCompression _compression;

    private ChunkedBlocks(ImageBytes image, (ulong Length, int ChunkSize, ChunkCompression Compression, byte[] Index) content)
        : base(content.ChunkSize)
    {
        Image = image;
        (Length, _chunkSize, _compression, _index) = content;
    }

    private ImageBytes Image { get; }

    /// <summary>The bytes of memory.</summary>
    public ulong Length { get; }

    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    public static ChunkedBlocks Open(ImageBytes image) => new(image, ChunkedImage.ReadIndex(image.File, image.Path));

    public override long Find(ulong position, out ulong start, out int size)
    {
        var number = position / (ulong)_chunkSize;
        start = number * (ulong)_chunkSize;
        size = (int)Math.Min((ulong)_chunkSize, Length - start);
        return (long)number;
    }

    protected override int TryUnpack(long number, Span<byte> target)
    {
        var entry = _index.AsSpan((int)number * ChunkedImage.EntrySize, ChunkedImage.EntrySize);
        var stored = (int)BinaryPrimitives.ReadUInt32LittleEndian(entry[8..]);
        if (stored == 0)
        {
            target.Clear();
            return 0;
        }

        var rented = ArrayPool<byte>.Shared.Rent(stored);
        try
        {
            var packed = rented.AsSpan(0, stored);
            if (Image.TryRead(BinaryPrimitives.ReadUInt64LittleEndian(entry), packed, out var error) < stored) return error;
            if (ChunkedImage.Crc(packed) != BinaryPrimitives.ReadUInt32LittleEndian(entry[12..])) return Errno.EBADMSG;
            if (stored != target.Length) return ChunkCodec.TryUnpack(_compression, packed, target) ? 0 : Errno.EBADMSG;
            packed.CopyTo(target);
            return 0;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rented);
        }
    }
}
