using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// A <see cref="DirtyBitmap"/> in a file that says which memory it is about, at whatever addresses and in whatever pages; what is read is what was written. (<see cref="DirtyBitmap.Save"/>
/// writes a dirty log for other programs, which is about a guest from address 0 in pages of 4096 bytes.) Numbers are little-endian. A header of 32 bytes: "GMDIRTY1", the
/// length of the memory (8), the bytes of a page (4), the CRC-32C of the bits (4), the address of the first page (8). Then a bit a page in words of 8 bytes: bit n % 64 of word
/// n / 64; bits past the last page are 0. The file beside a diff, <c>FILE.dirty</c>, is one.
/// </summary>
public static class DirtyBitmapFile
{
    private const int HeaderSize = 32;

    internal static ReadOnlySpan<byte> Magic => "GMDIRTY1"u8;

    /// <summary>Writes a bitmap. The file appears at its place when it is complete.</summary>
    /// <param name="bitmap">The bitmap. One of memory that begins inside a page is written from the begin of that page on.</param>
    /// <param name="path">The file.</param>
    /// <param name="overwrite">Whether it takes the place of a file that is there.</param>
    /// <exception cref="GuestMemoryException">FileExists; NotAFile; TooBig: more than 2 GiB of bits.</exception>
    /// <exception cref="IOException">It cannot be written; what was there stays.</exception>
    public static void Write(DirtyBitmap bitmap, string path, bool overwrite)
    {
        ArgumentNullException.ThrowIfNull(bitmap);
        if (bitmap.AsWords().Length > int.MaxValue / sizeof(ulong) || bitmap.PageSize > uint.MaxValue) throw new GuestMemoryException(GuestMemoryError.TooBig, $"A bitmap of {bitmap.PageCount} pages of {bitmap.PageSize} bytes does not fit into a file.");
        RawImage.CheckTarget(path, overwrite);
        Write(path, overwrite, new Header(bitmap.StartAddress, bitmap.ByteSize, (uint)bitmap.PageSize), bitmap.AsWords().ToArray());
    }

    /// <summary>Reads a bitmap.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: the file is damaged, or something else; NotAFile.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public static DirtyBitmap Read(string path)
    {
        RawImage.RequireFile(path);
        using var file = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        var words = Read(file, why => new GuestMemoryException(GuestMemoryError.InvalidLog, $"{path} is not the file of a dirty bitmap: {why}."), static _ => null, out var header);
        return new DirtyBitmap(header.Start, header.Length, header.PageSize, words, $"file {path}");
    }

    internal static void Write(string path, bool overwrite, Header header, ulong[] words)
    {
        var begin = new byte[HeaderSize];
        Magic.CopyTo(begin);
        BinaryPrimitives.WriteUInt64LittleEndian(begin.AsSpan(8), header.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(begin.AsSpan(16), header.PageSize);
        BinaryPrimitives.WriteUInt32LittleEndian(begin.AsSpan(20), ChunkedImage.Crc(MemoryMarshal.AsBytes(words.AsSpan())));
        BinaryPrimitives.WriteUInt64LittleEndian(begin.AsSpan(24), header.Start);
        _ = CompleteFile.Write(path, overwrite, file =>
        {
            RandomAccess.Write(file, begin, 0);
            RandomAccess.Write(file, MemoryMarshal.AsBytes(words.AsSpan()), HeaderSize);
            RandomAccess.FlushToDisk(file);
            return true;
        });
    }

    /// <summary>Reads the bits.</summary>
    /// <param name="file">The file.</param>
    /// <param name="invalid">Makes the error of a damaged one.</param>
    /// <param name="check">What the caller has against the header; null: nothing.</param>
    /// <param name="header">The header.</param>
    internal static ulong[] Read(SafeFileHandle file, Func<string, GuestMemoryException> invalid, Func<Header, string?> check, out Header header)
    {
        Span<byte> begin = stackalloc byte[HeaderSize];
        if (RandomAccess.Read(file, begin, 0) != HeaderSize || !begin[..8].SequenceEqual(Magic)) throw invalid("it does not begin as such a file does");
        header = new Header(BinaryPrimitives.ReadUInt64LittleEndian(begin[24..]), BinaryPrimitives.ReadUInt64LittleEndian(begin[8..]), BinaryPrimitives.ReadUInt32LittleEndian(begin[16..]));
        if (check(header) is { } why) throw invalid(why);
        if (header.PageSize == 0 || header.Start + Math.Max(1, header.Length) - 1 < header.Start) throw invalid("it is about no memory");
        var pages = (header.Length / header.PageSize) + (header.Length % header.PageSize == 0 ? 0UL : 1UL);
        var bytes = (pages + 63) / 64 * sizeof(ulong);
        if (bytes > int.MaxValue || (ulong)RandomAccess.GetLength(file) != HeaderSize + bytes) throw invalid("it has not a bit for each page");
        var words = new ulong[bytes / sizeof(ulong)];
        var bits = MemoryMarshal.AsBytes(words.AsSpan());
        if (RandomAccess.Read(file, bits, HeaderSize) != bits.Length) throw invalid("it has not a bit for each page");
        if (ChunkedImage.Crc(bits) != BinaryPrimitives.ReadUInt32LittleEndian(begin[20..])) throw invalid("its checksum is wrong");
        if ((pages & 63) != 0 && words[^1] >> (int)(pages & 63) != 0) throw invalid("it has bits past the last page");
        return words;
    }

    /// <summary>Which memory the bits are about.</summary>
    /// <param name="Start">The address of the first page.</param>
    /// <param name="Length">The length in bytes.</param>
    /// <param name="PageSize">The bytes of a page.</param>
    internal readonly record struct Header(ulong Start, ulong Length, uint PageSize);
}
