using System.Buffers.Binary;

namespace GuestMemory.Core.Images;

/// <summary>
/// The headers of LiME and AVML files: 32 bytes before each range of memory: magic (4), version (4), the first and the last address (8 each), 8 that are reserved.
/// All numbers are little-endian.
/// </summary>
internal static class LimeFile
{
    public const int HeaderSize = 32;

    // AVML's max_block_size.
    private const ulong AvmlBlock = AvmlWriter.BlockSize;
    private const int MaxRanges = 1 << 20;

    public static ReadOnlySpan<byte> LimeMagic => "EMiL"u8;

    public static ReadOnlySpan<byte> AvmlMagic => "AVML"u8;

    /// <summary>Reads a LiME file, version 1: behind each header the bytes of its range.</summary>
    /// <param name="image">The file.</param>
    /// <param name="omitted">The bytes of blocks that were left out of the file, and are zeros.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: another version.</exception>
    public static List<ImageExtent> Read(ImageBytes image, out ulong omitted, CancellationToken cancellation)
    {
        var extents = new List<ImageExtent>();
        for (ulong at = 0; at < image.Length;)
        {
            cancellation.ThrowIfCancellationRequested();
            var (address, size) = ReadHeader(image, at, LimeMagic, 1, "LiME");
            at += HeaderSize;
            if (size > image.Length - at) throw MemoryImage.Invalid(image.Path, $"its range at 0x{address:x} reaches past the end of the file; it may not have been completed");
            RequireRoom(extents.Count, image.Path);
            extents.Add(new ImageExtent(address, size, at, size));
            at += size;
        }

        extents.Sort(static (one, other) => one.Address.CompareTo(other.Address));
        return AddLeftOut(extents, out omitted);
    }

    /// <summary>
    /// Adds the blocks of zeros that AVML left out: it cuts each range of memory into blocks of 16 MiB, from its start on, and omits those of zeros, in LiME files,
    /// too (since its version 0.18). So a gap behind a whole block that is as long as whole blocks was one; any other gap is one of the machine's.
    /// </summary>
    /// <param name="extents">The ranges of the file, in the order of their addresses.</param>
    /// <param name="omitted">The bytes that were left out.</param>
    public static List<ImageExtent> AddLeftOut(List<ImageExtent> extents, out ulong omitted)
    {
        omitted = 0;
        var all = new List<ImageExtent>(extents.Count);
        foreach (var extent in extents)
        {
            if (all.Count > 0 && all[^1] is { Size: AvmlBlock } previous && extent.Address > previous.End && (extent.Address - previous.End) % AvmlBlock == 0)
            {
                var gap = extent.Address - previous.End;
                // As what follows in the file, of which it has nothing.
                all.Add(new ImageExtent(previous.End, gap, previous.FileOffset + previous.Size, 0));
                omitted += gap;
            }

            all.Add(extent);
        }

        return all;
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

    /// <summary>Refuses one range more than a file may have: a damaged one may have very many.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    public static void RequireRoom(int count, string path)
    {
        if (count == MaxRanges) throw MemoryImage.Invalid(path, $"it has more than {count} ranges of memory");
    }
}
