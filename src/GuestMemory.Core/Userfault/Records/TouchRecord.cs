using System.Buffers.Binary;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The file that holds which pages of an image a run touched, in the order of the first touches. A header of 32 bytes: "GMTOUCH1",
/// the length of the image, the bytes a page has, 0, the number of pages (8, 8, 4, 4 and 8 bytes); then the number of each page, 4
/// bytes. All of it little-endian.
/// </summary>
internal static class TouchRecord
{
    private const int HeaderSize = 32;

    private static ReadOnlySpan<byte> Magic => "GMTOUCH1"u8;

    /// <summary>Writes a record beside its place and renames it when it is complete.</summary>
    /// <exception cref="GuestMemoryException">NotAFile: something else is in its place.</exception>
    public static void Save(string path, ulong imageLength, ReadOnlySpan<uint> pages)
    {
        RawImage.RequireFile(path);
        var beside = $"{path}.{Environment.ProcessId}.part";
        try
        {
            using (var file = File.Create(beside))
            {
                Span<byte> header = stackalloc byte[HeaderSize];
                header.Clear();
                Magic.CopyTo(header);
                BinaryPrimitives.WriteUInt64LittleEndian(header[8..], imageLength);
                BinaryPrimitives.WriteUInt32LittleEndian(header[16..], (uint)HostPage.Size);
                BinaryPrimitives.WriteUInt64LittleEndian(header[24..], (ulong)pages.Length);
                file.Write(header);
                var bytes = new byte[sizeof(uint) * 4096];
                for (; !pages.IsEmpty; pages = pages[Math.Min(4096, pages.Length)..])
                {
                    var count = Math.Min(4096, pages.Length);
                    for (var i = 0; i < count; i++) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(i * sizeof(uint)), pages[i]);
                    file.Write(bytes, 0, count * sizeof(uint));
                }
            }

            File.Move(beside, path, overwrite: true);
        }
        catch
        {
            File.Delete(beside);
            throw;
        }
    }

    /// <summary>Reads a record and checks that it is of this image: every page lies inside and stands there once.</summary>
    /// <exception cref="GuestMemoryException">RecordNotFound; InvalidRecord.</exception>
    public static uint[] Load(string path, ulong imageLength)
    {
        using var file = Open(path);
        return Load(file, path, imageLength);
    }

    /// <summary>Opens a record.</summary>
    /// <exception cref="GuestMemoryException">RecordNotFound; InvalidRecord: it cannot be opened.</exception>
    public static SafeFileHandle Open(string path)
    {
        if (FileStatus.IsSpecial(path)) throw Invalid(path, "it is a directory, a device, a pipe or a socket");
        try
        {
            return File.OpenHandle(path);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestMemoryException(GuestMemoryError.RecordNotFound, $"There is no record of touches at {path}. A handler with a RecordPath writes one.", exception);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw Invalid(path, exception.Message);
        }
    }

    /// <summary>The same of an open file, which lies at a path.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord.</exception>
    public static uint[] Load(SafeFileHandle file, string path, ulong imageLength)
    {
        byte[] bytes;
        try
        {
            bytes = ReadPages(file, path, imageLength);
        }
        catch (IOException exception)
        {
            throw Invalid(path, exception.Message);
        }

        var all = PagesOf(imageLength);
        var seen = new AtomicBitmap(all, 1);
        var pages = new uint[bytes.Length / sizeof(uint)];
        for (var i = 0; i < pages.Length; i++)
        {
            pages[i] = BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(i * sizeof(uint)));
            if (pages[i] >= all) throw Invalid(path, $"page {pages[i]} lies behind the image's end");
            if (seen.IsBitSet(pages[i])) throw Invalid(path, $"page {pages[i]} stands in it twice");
            seen.SetBit(pages[i]);
        }

        return pages;
    }

    /// <summary>Checks the header and the length, and only then reads the rest: no more than the image has pages.</summary>
    private static byte[] ReadPages(SafeFileHandle file, string path, ulong imageLength)
    {
        var size = RandomAccess.GetLength(file);
        Span<byte> header = stackalloc byte[HeaderSize];
        if (RandomAccess.Read(file, header, 0) != HeaderSize || !header[..Magic.Length].SequenceEqual(Magic)) throw Invalid(path, "it does not begin as a record of touches does");
        var length = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        var pageSize = BinaryPrimitives.ReadUInt32LittleEndian(header[16..]);
        var count = BinaryPrimitives.ReadUInt64LittleEndian(header[24..]);
        if (length != imageLength) throw Invalid(path, $"it is of an image of {length} bytes, and this one has {imageLength}");
        if (pageSize != HostPage.Size) throw Invalid(path, $"its pages have {pageSize} bytes, and this host's {HostPage.Size}");
        if (count != (ulong)(size - HeaderSize) / sizeof(uint) || size % sizeof(uint) != 0) throw Invalid(path, $"it says {count} pages and is {size} bytes long");
        if (count > PagesOf(imageLength) || count > (ulong)Array.MaxLength / sizeof(uint)) throw Invalid(path, $"it says {count} pages, and the image has {PagesOf(imageLength)}");
        var pages = new byte[count * sizeof(uint)];
        return RandomAccess.Read(file, pages, HeaderSize) == pages.Length ? pages : throw Invalid(path, "it changes");
    }

    private static ulong PagesOf(ulong imageLength) => (imageLength + HostPage.Size - 1) / HostPage.Size;

    private static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidRecord, $"{path} cannot be replayed: {why}.");
}
