using System.Buffers.Binary;

namespace GuestMemory.Core.Images;

/// <summary>
/// The headers of LiME and AVML files: 32 bytes before each range of memory: magic (4), version (4), the first and the last address (8 each), 8 that are reserved.
/// All numbers are little-endian.
/// </summary>
internal static class LimeFile
{
    public const int HeaderSize = 32;

    public static ReadOnlySpan<byte> LimeMagic => "EMiL"u8;

    public static ReadOnlySpan<byte> AvmlMagic => "AVML"u8;

    /// <summary>Reads a LiME file, version 1: behind each header the bytes of its range.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: another version.</exception>
    public static List<ImageExtent> Read(ImageBytes image, CancellationToken cancellation)
    {
        var extents = new List<ImageExtent>();
        for (ulong at = 0; at < image.Length;)
        {
            cancellation.ThrowIfCancellationRequested();
            var (address, size) = ReadHeader(image, at, LimeMagic, 1, "LiME");
            at += HeaderSize;
            if (size > image.Length - at) throw MemoryImage.Invalid(image.Path, $"its range at 0x{address:x} reaches past the end of the file; it may not have been completed");
            Add(extents, new ImageExtent(address, size, at, size), image.Path);
            at += size;
        }

        return extents;
    }

    /// <summary>Reads a header.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage, ImageUnsupported.</exception>
    public static (ulong Address, ulong Size) ReadHeader(ImageBytes image, ulong at, ReadOnlySpan<byte> magic, uint version, string format)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        image.ReadExact(at, header);
        if (!header[..4].SequenceEqual(magic)) throw MemoryImage.Invalid(image.Path, $"at offset 0x{at:x} it has no header of {format}");
        var found = BinaryPrimitives.ReadUInt32LittleEndian(header[4..]);
        if (found != version) throw MemoryImage.Unsupported(image.Path, $"a {format} file of version {found}");
        var (first, last) = (BinaryPrimitives.ReadUInt64LittleEndian(header[8..]), BinaryPrimitives.ReadUInt64LittleEndian(header[16..]));
        if (last < first || last >= ImageMap.AddressLimit) throw MemoryImage.Invalid(image.Path, $"its range from 0x{first:x} to 0x{last:x} is none of any machine");
        return (first, last - first + 1);
    }

    /// <summary>Adds a range, of which a damaged file may have very many.</summary>
    public static void Add(List<ImageExtent> extents, ImageExtent extent, string path)
    {
        if (extents.Count == 1 << 20) throw MemoryImage.Invalid(path, $"it has more than {extents.Count} ranges of memory");
        extents.Add(extent);
    }
}
