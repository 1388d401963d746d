using K4os.Compression.LZ4;
using ZstdSharp;

namespace GuestMemory.Core.Store;

/// <summary>Packs and unpacks one chunk of a stored image. For any thread.</summary>
internal static class ImageCodec
{
    private const int ZstdLevel = 3;

    [ThreadStatic]
    private static Compressor? t_compressor;

    [ThreadStatic]
    private static Decompressor? t_decompressor;

    /// <summary>Packs a chunk; 0 where it does not become smaller than the room.</summary>
    public static int TryPack(ImageCompression compression, ReadOnlySpan<byte> chunk, Span<byte> room)
    {
        switch (compression)
        {
            case ImageCompression.LZ4:
                return Math.Max(0, LZ4Codec.Encode(chunk, room, LZ4Level.L00_FAST));
            case ImageCompression.Zstd:
                t_compressor ??= new Compressor(ZstdLevel);
                return t_compressor.TryWrap(chunk, room, out var written) ? written : 0;
            default:
                return 0;
        }
    }

    /// <summary>Unpacks a chunk; false where the bytes are not one of exactly that length.</summary>
    public static bool TryUnpack(ImageCompression compression, ReadOnlySpan<byte> packed, Span<byte> target)
    {
        switch (compression)
        {
            case ImageCompression.None:
                if (packed.Length != target.Length) return false;
                packed.CopyTo(target);
                return true;
            case ImageCompression.LZ4:
                return LZ4Codec.Decode(packed, target) == target.Length;
            default:
                t_decompressor ??= new Decompressor();
                try
                {
                    return t_decompressor.TryUnwrap(packed, target, out var written) && written == target.Length;
                }
                catch (ZstdException)
                {
                    return false;
                }
        }
    }
}
