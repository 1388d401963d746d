using System.Buffers.Binary;
using System.Text;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The file that holds which pages of an image a run touched, in the order of the first touches. A header of 32 bytes: "GMTOUCH1",
/// the length of the image, the bytes a page has, 0, the number of pages (8, 8, 4, 4 and 8 bytes); then the number of each page, 4
/// bytes. All of it little-endian. A record with pages begins with "GMPAGES1" and has, in place of the 0, the CRC-32C of the text that says
/// how the image's bytes lie (<see cref="PageSource.Layout"/>); its numbers are in the order in which a replay brings the pages in, and
/// behind them, from the next multiple of a page on, are the pages themselves in the same order, to the end of the file.
/// </summary>
internal static class TouchRecord
{
    private const int HeaderSize = 32;
    private const ulong MaxWrite = 1 << 20;

    private static ReadOnlySpan<byte> Magic => "GMTOUCH1"u8;

    private static ReadOnlySpan<byte> PagesMagic => "GMPAGES1"u8;

    /// <summary>Writes a record, whole or not at all.</summary>
    /// <exception cref="GuestMemoryException">NotAFile: something else is in its place.</exception>
    public static unsafe void Save(string path, ulong imageLength, ReadOnlySpan<uint> pages)
    {
        RawImage.RequireFile(path);
        // A lambda cannot have a span; what this one is of stays where it is meanwhile.
        fixed (uint* first = pages)
        {
            var (start, count) = ((nint)first, pages.Length);
            _ = CompleteFile.Write(path, overwrite: true, file => Write(file, Magic, imageLength, 0, new ReadOnlySpan<uint>((uint*)start, count)));
        }
    }

    /// <summary>Writes a record with its pages, whole or not at all.</summary>
    /// <param name="path">Its place.</param>
    /// <param name="source">The image.</param>
    /// <param name="plan">How a replay brings the pages in.</param>
    /// <param name="cancellation">Gives it up; what was in its place stays.</param>
    /// <exception cref="GuestMemoryException">NotAFile: something else is in its place. ImageUnreadable: a page cannot be read.</exception>
    public static void SavePages(string path, PageSource source, UffdReplay plan, CancellationToken cancellation)
    {
        RawImage.RequireFile(path);
        _ = CompleteFile.Write(path, overwrite: true, file =>
        {
            var numbers = new uint[plan.PageCount];
            var count = 0;
            foreach (var run in plan.Runs)
            {
                for (var page = run.First; page < run.End; page++) numbers[count++] = (uint)page;
            }

            _ = Write(file, PagesMagic, source.Length, LayoutDigest(source), numbers);
            var at = DataOffset(count);
            using var scratch = new PageScratch();
            foreach (var run in plan.Runs) at += WriteRun(file, at, source, run, scratch, cancellation);
            RandomAccess.SetLength(file, (long)at);
            // A file whose numbers outlive a crash of the host, and whose pages do not, would give VMs zeros.
            RandomAccess.FlushToDisk(file);
            return true;
        });
    }

    /// <summary>Whether a record holds pages. What is no record at all, or is not there, is found when it is read.</summary>
    public static bool HasPages(string path)
    {
        try
        {
            using var file = Open(path);
            Span<byte> magic = stackalloc byte[8];
            return RandomAccess.Read(file, magic, 0) == magic.Length && magic.SequenceEqual(PagesMagic);
        }
        catch (Exception exception) when (exception is GuestMemoryException or IOException)
        {
            return false;
        }
    }

    /// <summary>Where the pages of a record begin.</summary>
    public static ulong DataOffset(int count) => HostPage.RoundUp(HeaderSize + ((ulong)count * sizeof(uint)), HostPage.Size);

    /// <summary>Reads the numbers of a record with pages, and checks that it is of this image.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord.</exception>
    public static uint[] LoadPages(SafeFileHandle file, string path, PageSource source)
    {
        var (length, pages, layout) = Checked(file, path);
        if (layout is null) throw Invalid(path, "it has no pages");
        if (length != source.Length) throw OfAnother(path, length, source.Length);
        return layout == LayoutDigest(source) ? pages : throw Invalid(path, $"{source.Name} and its layers are not those whose pages it has");
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
        var (length, pages, _) = Checked(file, path);
        return length == imageLength ? pages : throw OfAnother(path, length, imageLength);
    }

    /// <summary>Reads a record of whichever image: the image's length, and the pages, of which each lies inside and stands there once.</summary>
    /// <exception cref="GuestMemoryException">RecordNotFound; InvalidRecord.</exception>
    public static (ulong ImageLength, uint[] Pages) Load(string path)
    {
        using var file = Open(path);
        var (length, pages, _) = Checked(file, path);
        return (length, pages);
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

    private static (ulong ImageLength, uint[] Pages, uint? Layout) Checked(SafeFileHandle file, string path)
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
    private static (ulong ImageLength, uint[] Pages, uint? Layout) Read(SafeFileHandle file, string path)
    {
        var size = RandomAccess.GetLength(file);
        Span<byte> header = stackalloc byte[HeaderSize];
        var isRead = RandomAccess.Read(file, header, 0) == HeaderSize;
        var hasPages = header[..PagesMagic.Length].SequenceEqual(PagesMagic);
        if (!isRead || (!hasPages && !header[..Magic.Length].SequenceEqual(Magic))) throw Invalid(path, "it does not begin as a record of touches does");
        var length = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        var pageSize = BinaryPrimitives.ReadUInt32LittleEndian(header[16..]);
        var count = BinaryPrimitives.ReadUInt64LittleEndian(header[24..]);
        var all = PagesOf(length);
        if (pageSize != HostPage.Size) throw Invalid(path, $"its pages have {pageSize} bytes, and this host's {HostPage.Size}");
        if (count > all || count > (ulong)Array.MaxLength / sizeof(uint)) throw Invalid(path, $"it says {count} pages, and the image has {all}");
        var expected = hasPages ? DataOffset((int)count) + (count * HostPage.Size) : HeaderSize + (count * sizeof(uint));
        if ((ulong)size != expected) throw Invalid(path, $"it says {count} pages and is {size} bytes long");
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

        return (length, pages, hasPages ? BinaryPrimitives.ReadUInt32LittleEndian(header[20..]) : null);
    }

    private static ulong PagesOf(ulong imageLength) => (imageLength / HostPage.Size) + (imageLength % HostPage.Size == 0 ? 0UL : 1);

    private static uint LayoutDigest(PageSource source) => ChunkedImage.Crc(Encoding.UTF8.GetBytes(source.Layout));

    public static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidRecord, $"{path} is no record that can be used: {why}.");

    public static GuestMemoryException OfAnother(string path, ulong length, ulong imageLength) =>
        Invalid(path, $"it is of an image of {length} bytes, and this one has {imageLength}");

    /// <summary>Writes pages that follow each other; how many bytes.</summary>
    private static unsafe ulong WriteRun(SafeFileHandle file, ulong at, PageSource source, PageRun run, PageScratch scratch, CancellationToken cancellation)
    {
        var (offset, length) = ((ulong)run.First * HostPage.Size, (ulong)run.Count * HostPage.Size);
        for (ulong done = 0; done < length;)
        {
            cancellation.ThrowIfCancellationRequested();
            var error = source.Locate(offset + done, Math.Min(length - done, MaxWrite), scratch, out var data);
            if (error != 0) throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The bytes of {source.Name} from {offset + done} on cannot be read: {Errno.Name(error)}.");
            // The kernel copies: what cannot be read is an error, and no signal. Pages of zeros are a hole.
            if (data.Data is not null) RandomAccess.Write(file, new ReadOnlySpan<byte>(data.Data, (int)data.Length), (long)(at + done));
            done += data.Length;
        }

        return length;
    }

    private static long Write(SafeFileHandle file, ReadOnlySpan<byte> magic, ulong imageLength, uint layout, ReadOnlySpan<uint> pages)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        header.Clear();
        magic.CopyTo(header);
        BinaryPrimitives.WriteUInt64LittleEndian(header[8..], imageLength);
        BinaryPrimitives.WriteUInt32LittleEndian(header[16..], (uint)HostPage.Size);
        BinaryPrimitives.WriteUInt32LittleEndian(header[20..], layout);
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
