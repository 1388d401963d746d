using Snappier;

namespace GuestMemory.Core.Images;

/// <summary>Unpacks blocks of Snappy that may be damaged.</summary>
internal static class SnappyCodec
{
    /// <summary>The bytes that a block unpacks to, from its first 5 bytes; -1 where they say none that a block can have.</summary>
    public static int LengthOf(ReadOnlySpan<byte> block)
    {
        long length = 0;
        for (var i = 0; i < Math.Min(block.Length, 5); i++)
        {
            length |= (long)(block[i] & 0x7f) << (7 * i);
            if (block[i] < 0x80) return length <= int.MaxValue ? (int)length : -1;
        }

        return -1;
    }

    /// <summary>Unpacks a block; false where it is not one of exactly that length.</summary>
    public static bool TryUnpack(ReadOnlySpan<byte> packed, Span<byte> target)
    {
        if (LengthOf(packed) != target.Length) return false;
        try
        {
            return Snappy.TryDecompress(packed, target, out var written) && written == target.Length;
        }
        catch (Exception exception) when (exception is InvalidDataException or ArgumentException)
        {
            return false;
        }
    }
}
