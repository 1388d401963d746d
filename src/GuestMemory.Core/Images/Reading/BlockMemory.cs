namespace GuestMemory.Core.Images;

/// <summary>A region whose bytes are unpacked when they are read.</summary>
/// <param name="image">The file.</param>
/// <param name="blocks">Its blocks.</param>
/// <param name="origin">The position of the region's first byte among them.</param>
/// <param name="size">The bytes.</param>
internal sealed class BlockMemory(ImageBytes image, ImageBlocks blocks, ulong origin, ulong size) : ImageMemory(image, size)
{
    protected override int ReadImage(ulong offset, Span<byte> buffer, out int error) => blocks.TryRead(origin + offset, buffer, out error);
}
