using GuestMemory.Core.Images;

namespace GuestMemory.Core.Store;

/// <summary>The chunks of a stored image. Their positions are offsets in the memory.</summary>
internal sealed class StoredChunks(ImageReader reader) : ImageBlocks(reader.Manifest.ChunkSize)
{
    public override long Find(ulong position, out ulong start, out int size)
    {
        var number = (int)(position / (ulong)reader.Manifest.ChunkSize);
        start = (ulong)number * (ulong)reader.Manifest.ChunkSize;
        size = reader.Manifest.SizeOf(number);
        return number;
    }

    protected override int TryUnpack(long number, Span<byte> target)
    {
        reader.Read((int)number, target);
        return 0;
    }
}
