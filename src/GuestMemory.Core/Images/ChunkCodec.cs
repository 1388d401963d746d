using System.IO.Compression;

namespace GuestMemory.Core.Images;

/// <summary>Packs and unpacks one chunk.</summary>
internal static class ChunkCodec
{
    private const int Quality = 2;
    private const int Window = 18;

    /// <summary>Packs a chunk; false where it does not fit, and is better stored as it is.</summary>
    public static bool TryPack(ChunkCompression compression, ReadOnlySpan<byte> chunk, byte[] packed, int limit, out int length)
    {
        if (compression == ChunkCompression.Brotli) return BrotliEncoder.TryCompress(chunk, packed.AsSpan(0, limit), out length, Quality, Window);
        using var target = new MemoryStream(packed, 0, limit);
        length = 0;
        try
        {
            using (var stream = new ZLibStream(target, CompressionLevel.Fastest, leaveOpen: true)) stream.Write(chunk);
        }
        catch (NotSupportedException)
        {
            // The room is over.
            return false;
        }

        length = (int)target.Position;
        return true;
    }

    /// <summary>Unpacks a chunk; false where it is not one of exactly that length.</summary>
    public static unsafe bool TryUnpack(ChunkCompression compression, ReadOnlySpan<byte> packed, Span<byte> target)
    {
        if (compression == ChunkCompression.Brotli) return BrotliDecoder.TryDecompress(packed, target, out var written) && written == target.Length;
        fixed (byte* start = packed)
        {
            using var source = new UnmanagedMemoryStream(start, packed.Length);
            using var stream = new ZLibStream(source, CompressionMode.Decompress);
            try
            {
                return stream.ReadAtLeast(target, target.Length, throwOnEndOfStream: false) == target.Length && stream.ReadByte() < 0;
            }
            catch (Exception exception) when (exception is InvalidDataException or IOException)
            {
                // An IOException where zlib asks for what no chunk has, a dictionary.
                return false;
            }
        }
    }
}
