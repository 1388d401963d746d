using System.Buffers.Binary;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// Which pages a diff has, in a file beside it: FILE.dirty. The diff is a sparse file, but not every file system, and not every copy,
/// keeps its holes to the page. Numbers are little-endian. A header of 32 bytes: "GMDIRTY1", the length of the memory (8), the bytes of
/// a page (4), the CRC-32C of the bits (4), zeros. Then a bit a page in words of 8 bytes: bit n % 64 of word n / 64; bits past the last
/// page are 0. A diff that was written after its bits is not what they tell of.
/// </summary>
internal static class DirtySidecar
{
    private const int HeaderSize = 32;

    private static ReadOnlySpan<byte> Magic => "GMDIRTY1"u8;

    public static string PathOf(string diff) => diff + ".dirty";

    /// <summary>The words that the bits of a memory take.</summary>
    public static int WordCount(ulong length) => checked((int)((((length + HostPage.Size - 1) / HostPage.Size) + 63) / 64));

    /// <summary>Writes the bits of a diff, which must have been written already.</summary>
    /// <exception cref="IOException">They cannot be written; what was there stays.</exception>
    public static void Write(string diff, ulong length, ulong[] words)
    {
        var bits = MemoryMarshal.AsBytes(words.AsSpan());
        var header = new byte[HeaderSize];
        Magic.CopyTo(header);
        BinaryPrimitives.WriteUInt64LittleEndian(header.AsSpan(8), length);
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(16), (uint)HostPage.Size);
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(20), ChunkedImage.Crc(bits));
        _ = CompleteFile.Write(PathOf(diff), overwrite: true, file =>
        {
            RandomAccess.Write(file, header, 0);
            RandomAccess.Write(file, MemoryMarshal.AsBytes(words.AsSpan()), HeaderSize);
            RandomAccess.FlushToDisk(file);
            return true;
        });
    }

    /// <summary>Reads the bits of a diff.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage: the file is damaged, or of another memory.</exception>
    public static ulong[] Read(SafeFileHandle file, string path, ulong length)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        if (RandomAccess.Read(file, header, 0) != HeaderSize || !header[..8].SequenceEqual(Magic)) throw Invalid(path, "it does not begin as such a file does");
        if (BinaryPrimitives.ReadUInt64LittleEndian(header[8..]) is var bytes && bytes != length) throw Invalid(path, $"it is of a memory of {bytes} bytes, and the diff is {length} bytes long");
        if (BinaryPrimitives.ReadUInt32LittleEndian(header[16..]) is var page && page != HostPage.Size) throw Invalid(path, $"its pages have {page} bytes, and those of this host {HostPage.Size}");
        var words = new ulong[WordCount(length)];
        var bits = MemoryMarshal.AsBytes(words.AsSpan());
        if (RandomAccess.GetLength(file) != HeaderSize + bits.Length || RandomAccess.Read(file, bits, HeaderSize) != bits.Length) throw Invalid(path, "it has not a bit for each page");
        if (ChunkedImage.Crc(bits) != BinaryPrimitives.ReadUInt32LittleEndian(header[20..])) throw Invalid(path, "its checksum is wrong");
        var last = (int)((length + HostPage.Size - 1) / HostPage.Size & 63);
        if (last != 0 && words[^1] >> last != 0) throw Invalid(path, "it has bits past the last page");
        return words;
    }

    /// <summary>The bits that lie beside a file; null where none do.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage: they are damaged, or of another memory.</exception>
    public static ulong[]? TryLoad(string diff, ulong length)
    {
        if (!IsThere(diff)) return null;
        using var file = File.OpenHandle(PathOf(diff));
        return Read(file, PathOf(diff), length);
    }

    /// <summary>Refuses a place for bits where something else lies.</summary>
    /// <exception cref="GuestMemoryException">FileExists.</exception>
    public static void RequirePlace(string diff, bool overwrite)
    {
        var path = PathOf(diff);
        if (Directory.Exists(path) || (!overwrite && File.Exists(path) && !IsThere(diff)))
            throw new GuestMemoryException(GuestMemoryError.FileExists, $"{path}, in which the pages of the diff are to be noted, exists and is something else. Give another path for the diff.");
    }

    /// <summary>Takes away the bits of a diff that lay at a path where something else lies now. What is no such file stays.</summary>
    public static void Remove(string diff)
    {
        if (IsThere(diff)) File.Delete(PathOf(diff));
    }

    private static bool IsThere(string diff)
    {
        if (FileStatus.TryGet(PathOf(diff), out var status, follow: true) != 0 || (status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFREG) return false;
        Span<byte> begin = stackalloc byte[8];
        using var file = File.OpenHandle(PathOf(diff));
        return RandomAccess.Read(file, begin, 0) == begin.Length && begin.SequenceEqual(Magic);
    }

    private static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidImage, $"{path} does not tell which pages of the diff beside it were written: {why}.");
}
