using System.Buffers.Binary;

namespace GuestMemory.Core.Images;

/// <summary>
/// Writes LiME images, version 1 (LiME's <c>doc/README.md</c>): each region, in ascending order of guest addresses, behind a header of 32 bytes: 0x4C694D45 (4), the version 1 (4), the
/// guest address of the first byte (8) and of the last one (8), zeros (8). All numbers are little-endian. Pages of zeros are holes of the file. A region of just 16 MiB is
/// two ranges: a gap behind a range of that size may look like blocks that AVML left out (<see cref="LimeFile.AddLeftOut"/>).
/// </summary>
public static class LimeWriter
{
    internal const uint Magic = 0x4C694D45;
    internal const int HeaderSize = 32;

    /// <summary>Writes the whole memory; the file is made beside its place and renamed when it is complete.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="digest">Whether to compute the file's SHA-256, and to write it beside the file (FILE.sha256).</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends the export; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile, TargetIsMapped; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo Write(GuestMemoryMmap memory, string path, bool overwrite, bool digest = false, Action<ulong>? progress = null, CancellationToken cancellation = default) =>
        WholeImage.Write(memory, path, ImageFormat.LiME, overwrite, digest, isSparse: true, progress, cancellation, (output, reader) =>
        {
            foreach (var region in memory.Regions)
            {
                var isCut = region.Size == AvmlWriter.BlockSize;
                var middle = region.GuestAddress + (region.Size / 2);
                Begin(output, region.GuestAddress, isCut ? middle - 1 : region.LastAddress);
                reader.Copy(region, (at, piece) =>
                {
                    if (isCut && at == middle) Begin(output, middle, region.LastAddress);
                    output.AppendPages(piece);
                });
            }
        });

    private static void Begin(ImageOutput output, ulong first, ulong last)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        WriteHeader(header, Magic, version: 1, first, last);
        output.Append(header);
    }

    /// <summary>Makes the header of a range, of LiME or of AVML.</summary>
    internal static void WriteHeader(Span<byte> header, uint magic, uint version, ulong first, ulong last)
    {
        header.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(header, magic);
        BinaryPrimitives.WriteUInt32LittleEndian(header[4..], version);
        BinaryPrimitives.WriteUInt64LittleEndian(header[8..], first);
        BinaryPrimitives.WriteUInt64LittleEndian(header[16..], last);
    }
}
