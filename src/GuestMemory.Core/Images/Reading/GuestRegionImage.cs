namespace GuestMemory.Core.Images;

/// <summary>Memory of an image at a guest physical address, to be read, which is not mapped: it is read from the file or the store, or unpacked, for each access.</summary>
public sealed class GuestRegionImage : GuestMemoryRegion
{
    internal GuestRegionImage(VolatileMemory memory, string path, GuestAddress guestAddress, string name, ImageFormat format)
        : base(memory, guestAddress, name)
    {
        BackingPath = path;
        Format = format;
    }

    /// <summary>The file, or the image of a store.</summary>
    public string BackingPath { get; }

    /// <summary>Its format.</summary>
    public ImageFormat Format { get; }
}
