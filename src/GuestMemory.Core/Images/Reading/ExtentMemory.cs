namespace GuestMemory.Core.Images;

/// <summary>A region whose bytes stand in the file as they are, but not on pages of it, or in several pieces.</summary>
/// <param name="image">The file.</param>
/// <param name="extents">The pieces, in order and without a gap.</param>
internal sealed class ExtentMemory(ImageBytes image, ImageExtent[] extents) : ImageMemory(image, extents[^1].End - extents[0].Address)
{
    protected override int ReadImage(ulong offset, Span<byte> buffer, out int error)
    {
        error = 0;
        var done = 0;
        for (var i = Find(extents[0].Address + offset); done < buffer.Length; i++)
        {
            ref readonly var extent = ref extents[i];
            var inside = extents[0].Address + offset + (ulong)done - extent.Address;
            var part = buffer.Slice(done, (int)Math.Min(extent.Size - inside, (ulong)(buffer.Length - done)));
            var stored = (int)Math.Min(extent.FileSize > inside ? extent.FileSize - inside : 0, (ulong)part.Length);
            var count = stored == 0 ? 0 : Image.TryRead(extent.FileOffset + inside, part[..stored], out error);
            if (error != 0) return done + count;
            part[stored..].Clear();
            done += part.Length;
        }

        return done;
    }

    private int Find(ulong address)
    {
        var (low, high) = (0, extents.Length - 1);
        while (low < high)
        {
            var middle = (low + high + 1) / 2;
            if (extents[middle].Address <= address) low = middle;
            else high = middle - 1;
        }

        return low;
    }
}
