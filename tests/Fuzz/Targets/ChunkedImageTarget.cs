using System.Buffers.Binary;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// An image of chunks, of which pages are asked for as a handler does. Where the first byte is '1' the checksums are put right first:
/// nothing that is changed at random would pass them.
/// </summary>
internal static class ChunkedImageTarget
{
    private const ulong MaxWritten = 1 << 20;
    private const int MaxPages = 4096;

    public static void Run(byte[] input)
    {
        if (input.Length < 2) return;
        var image = input[1..];
        if (input[0] == '1') PutChecksumsRight(image);
        using var files = new Files();
        using var file = ImageFile.Open(files.Write(image));
        if (!ChunkedImage.IsOne(file.Handle)) return;
        if (!Check.TryParse(() => new ChunkedSource(file), out var source, GuestMemoryError.InvalidImage)) return;
        using (source)
        {
            Check.True(source.Length > 0, "an image without bytes");
            var content = Read(source);
            if (content is not null) WriteAndRead(content, files);
        }
    }

    /// <summary>Asks for pages; their bytes where all could be had and are not too many, else null.</summary>
    private static unsafe byte[]? Read(PageSource source)
    {
        using var scratch = new PageScratch();
        var pages = (source.Length + HostPage.Size - 1) / HostPage.Size;
        // Of a large image some, to its very end.
        var step = Math.Max(1, pages / MaxPages);
        var content = source.Length <= MaxWritten ? new byte[pages * HostPage.Size] : null;
        for (ulong page = 0; page < pages; page = page == pages - 1 ? pages : Math.Min(page + step, pages - 1))
        {
            var error = source.Locate(page * HostPage.Size, HostPage.Size, scratch, out var run);
            if (error != 0)
            {
                Check.True(error is Errno.EBADMSG or Errno.EIO, $"page {page} has error {error}");
                return null;
            }

            Check.Same(HostPage.Size, run.Length, "the length of a page");
            if (run.Data is null || content is null) continue;
            new ReadOnlySpan<byte>(run.Data, (int)HostPage.Size).CopyTo(content.AsSpan((int)(page * HostPage.Size)));
        }

        Check.True(content is null || !content.AsSpan((int)source.Length).ContainsAnyExcept((byte)0), "behind the end of the image stands something");
        return content;
    }

    private static void WriteAndRead(byte[] content, Files files)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder((ulong)content.Length).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.WriteExact(new GuestAddress(0), content);
        foreach (var compression in Enum.GetValues<ChunkCompression>())
        {
            var path = files.Next();
            ChunkedImage.Write(memory, path, overwrite: false, compression);
            using var source = new ChunkedSource(ImageFile.Open(path));
            Check.SameItems<byte>(content, Read(source), $"the image, written with {compression}");
        }
    }

    private static void PutChecksumsRight(byte[] image)
    {
        if (image.Length < 2 * ChunkedImage.EndSize) return;
        var footer = image.AsSpan(image.Length - ChunkedImage.EndSize);
        var at = BinaryPrimitives.ReadUInt64LittleEndian(footer);
        var end = (ulong)(image.Length - ChunkedImage.EndSize);
        if (at > end) return;
        var index = image.AsSpan((int)at, (int)(end - at));
        for (var entry = index; entry.Length >= ChunkedImage.EntrySize; entry = entry[ChunkedImage.EntrySize..])
        {
            var offset = BinaryPrimitives.ReadUInt64LittleEndian(entry);
            var stored = BinaryPrimitives.ReadUInt32LittleEndian(entry[8..]);
            if (offset <= (ulong)image.Length && stored <= (ulong)image.Length - offset)
                BinaryPrimitives.WriteUInt32LittleEndian(entry[12..], ChunkedImage.Crc(image.AsSpan((int)offset, (int)stored)));
        }

        BinaryPrimitives.WriteUInt32LittleEndian(footer[12..], ChunkedImage.Crc(index));
    }
}
