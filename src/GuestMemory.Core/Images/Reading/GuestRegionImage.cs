namespace GuestMemory.Core.Images;

/// <summary>Memory of an image at a guest physical address, to be read, which is not mapped: it is read from the file, or unpacked, for each access.</summary>
public sealed class GuestRegionImage : GuestMemoryRegion
{
    internal GuestRegionImage(ImageMemory memory, GuestAddress guestAddress, string name, ImageFormat format)
        : base(memory, guestAddress, name)
    {
        BackingPath = memory.Path;
        Format = format;
    }

    /// <summary>The file.</summary>
    public string BackingPath { get; }

    /// <summary>Its format.</summary>
    public ImageFormat Format { get; }
}
