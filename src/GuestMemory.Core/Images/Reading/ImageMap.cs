namespace GuestMemory.Core.Images;

/// <summary>Puts pieces of guest memory in order, as the regions that they form.</summary>
internal static class ImageMap
{
    /// <summary>No machine has physical addresses from here on.</summary>
    public const ulong AddressLimit = 1UL << 52;

    /// <summary>More regions, or pieces of one, than this no machine has.</summary>
    public const int MaxRegions = 1 << 16;

    /// <summary>The ranges of addresses without a gap, in ascending order, with their pieces.</summary>
    /// <param name="extents">The pieces, in any order, none empty.</param>
    /// <param name="path">The file's name in errors.</param>
    /// <exception cref="GuestMemoryException">InvalidImage: there is none, there are too many, one has addresses that no machine has, or two say different things of the same addresses.</exception>
    public static List<ImageExtent[]> Regions(List<ImageExtent> extents, string path)
    {
        if (extents.Count == 0) throw MemoryImage.Invalid(path, "it has no memory");
        foreach (var extent in extents)
        {
            if (extent.Size > AddressLimit || extent.Address > AddressLimit - extent.Size)
                throw MemoryImage.Invalid(path, $"it has memory at guest address 0x{extent.Address:x}, past those of any machine");
        }

        extents.Sort(static (one, other) => one.Address.CompareTo(other.Address));
        var regions = new List<ImageExtent[]>();
        var region = new List<ImageExtent>();
        foreach (var extent in extents)
        {
            if (region.Count == 0)
            {
                region.Add(extent);
            }
            else if (region[^1] is var last && extent.Address > last.End)
            {
                regions.Add([.. region]);
                region.Clear();
                region.Add(extent);
            }
            else if (IsContinued(last, extent))
            {
                // The same bytes twice, or bytes that go on in the file as they do in memory.
                var end = Math.Max(last.End, extent.End);
                region[^1] = last with { Size = end - last.Address, FileSize = Math.Max(last.FileSize, extent.FileOffset + extent.FileSize - last.FileOffset) };
            }
            else if (extent.Address == last.End)
            {
                region.Add(extent);
            }
            else
            {
                throw MemoryImage.Invalid(path, $"two of its ranges have guest address 0x{extent.Address:x}");
            }
        }

        regions.Add([.. region]);
        return regions.Count <= MaxRegions ? regions : throw MemoryImage.Invalid(path, $"it has {regions.Count} ranges of memory");
    }

    private static bool IsContinued(ImageExtent last, ImageExtent extent) =>
        unchecked(extent.FileOffset - extent.Address == last.FileOffset - last.Address) && last.FileSize == last.Size && (extent.FileSize == extent.Size || extent.Address == last.End);
}
