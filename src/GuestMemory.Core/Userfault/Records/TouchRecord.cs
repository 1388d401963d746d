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

    /// <summary>Writes a record, whole or not at all.</summary>
    /// <exception cref="GuestMemoryException">NotAFile: something else is in its place.</exception>
    public static unsafe void Save(string path, ulong imageLength, ReadOnlySpan<uint> pages)
    {
        RawImage.RequireFile(path);
        // A lambda cannot have a span; what this one is of stays where it is meanwhile.
        fixed (uint* first = pages)
        {
            var (start, count) = ((nint)first, pages.Length);
            _ = CompleteFile.Write(path, overwrite: true, file => Write(file, imageLength, new ReadOnlySpan<uint>((uint*)start, count)));
        }
    }

    /// <summary>Reads a record and checks that it is of this image: every page lies inside and stands there once.</summary>
    /// <exception cref="GuestMemoryException">RecordNotFound; InvalidRecord.</exception>
    public static uint[] Load(string path, ulong imageLength)
    {
        using var file = Open(path);
        return Load(file, path, imageLength);
    }

    /// <summary>The same of an open file, which lies at a path.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord.</exception>
    public static uint[] Load(SafeFileHandle file, string path, ulong imageLength)
    {
        var (length, pages) = Load(file, path);
        return length == imageLength ? pages : throw Invalid(path, $"it is of an image of {length} bytes, and this one has {imageLength}");
    }

    /// <summary>Reads a record of whichever image: the image's length, and the pages, of which each lies inside and stands there once.</summary>
    /// <exception cref="GuestMemoryException">RecordNotFound; InvalidRecord.</exception>
    public static (ulong ImageLength, uint[] Pages) Load(string path)
    {
        using var file = Open(path);
        return Load(file, path);
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

    private static (ulong ImageLength, uint[] Pages) Load(SafeFileHandle file, string path)
    {
        try
        {
            return Read(file, path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw Invalid(path, exception.Message);
        }
    }

    /// <summary>Checks the header and the length, and only then reads the rest.</summary>
    private static (ulong ImageLength, uint[] Pages) Read(SafeFileHandle file, string path)
    {
        var size = RandomAccess.GetLength(file);
        Span<byte> header = stackalloc byte[HeaderSize];
        if (RandomAccess.Read(file, header, 0) != HeaderSize || !header[..Magic.Length].SequenceEqual(Magic)) throw Invalid(path, "it does not begin as a record of touches does");
        var length = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        var pageSize = BinaryPrimitives.ReadUInt32LittleEndian(header[16..]);
        var count = BinaryPrimitives.ReadUInt64LittleEndian(header[24..]);
        var all = PagesOf(length);
        if (pageSize != HostPage.Size) throw Invalid(path, $"its pages have {pageSize} bytes, and this host's {HostPage.Size}");
        if (count != (ulong)(size - HeaderSize) / sizeof(uint) || size % sizeof(uint) != 0) throw Invalid(path, $"it says {count} pages and is {size} bytes long");
        if (count > all || count > (ulong)Array.MaxLength / sizeof(uint)) throw Invalid(path, $"it says {count} pages, and the image has {all}");
        var bytes = new byte[count * sizeof(uint)];
        if (RandomAccess.Read(file, bytes, HeaderSize) != bytes.Length) throw Invalid(path, "it changes");
        var pages = new uint[count];
        for (var i = 0; i < pages.Length; i++)
        {
            pages[i] = BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(i * sizeof(uint)));
            if (pages[i] >= all) throw Invalid(path, $"page {pages[i]} lies behind the image's end");
        }

        // Sorted, since only the image of a record that is right limits the size of a bitmap.
        var sorted = pages.AsSpan().ToArray();
        Array.Sort(sorted);
        for (var i = 1; i < sorted.Length; i++)
        {
            if (sorted[i] == sorted[i - 1]) throw Invalid(path, $"page {sorted[i]} stands in it twice");
        }

        return (length, pages);
    }

    private static ulong PagesOf(ulong imageLength) => (imageLength / HostPage.Size) + (imageLength % HostPage.Size == 0 ? 0UL : 1);

    private static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidRecord, $"{path} is no record that can be used: {why}.");

    private static long Write(SafeFileHandle file, ulong imageLength, ReadOnlySpan<uint> pages)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        header.Clear();
        Magic.CopyTo(header);
        BinaryPrimitives.WriteUInt64LittleEndian(header[8..], imageLength);
        BinaryPrimitives.WriteUInt32LittleEndian(header[16..], (uint)HostPage.Size);
        BinaryPrimitives.WriteUInt64LittleEndian(header[24..], (ulong)pages.Length);
        RandomAccess.Write(file, header, 0);
        long at = HeaderSize;
        var bytes = new byte[sizeof(uint) * 4096];
        for (; !pages.IsEmpty; pages = pages[Math.Min(4096, pages.Length)..])
        {
            var count = Math.Min(4096, pages.Length);
            for (var i = 0; i < count; i++) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(i * sizeof(uint)), pages[i]);
            RandomAccess.Write(file, bytes.AsSpan(0, count * sizeof(uint)), at);
            at += count * sizeof(uint);
        }

        return at;
    }
}
