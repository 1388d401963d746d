using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// Which pages a diff has, in a file beside it: FILE.dirty. The diff is a sparse file, but not every file system, and not every copy,
/// keeps its holes to the page. It is a <see cref="DirtyBitmapFile"/> from address 0 on. A diff that was written after its bits is not what they tell of.
/// </summary>
internal static class DirtySidecar
{
    public static string PathOf(string diff) => diff + ".dirty";

    /// <summary>The words that the bits of a memory take.</summary>
    public static int WordCount(ulong length) => checked((int)((((length + HostPage.Size - 1) / HostPage.Size) + 63) / 64));

    /// <summary>Writes the bits of a diff, which must have been written already.</summary>
    /// <exception cref="IOException">They cannot be written; what was there stays.</exception>
    public static void Write(string diff, ulong length, ulong[] words) => DirtyBitmapFile.Write(PathOf(diff), overwrite: true, new DirtyBitmapFile.Header(0, length, (uint)HostPage.Size), words);

    /// <summary>Reads the bits of a diff.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage: the file is damaged, or of another memory.</exception>
    public static ulong[] Read(SafeFileHandle file, string path, ulong length) => DirtyBitmapFile.Read(file, why => Invalid(path, why), header =>
        header.Length != length ? $"it is of a memory of {header.Length} bytes, and the diff is {length} bytes long"
        : header.PageSize != HostPage.Size ? $"its pages have {header.PageSize} bytes, and those of this host {HostPage.Size}"
        : header.Start != 0 ? $"its first page is at 0x{header.Start:x}, and not at the begin of the diff" : null, out _);

    /// <summary>The bits that lie beside a file; null where none do.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage: they are damaged, or of another memory.</exception>
    public static ulong[]? TryLoad(string diff, ulong length)
    {
        if (!IsThere(diff)) return null;
        using var file = File.OpenHandle(PathOf(diff));
        return Read(file, PathOf(diff), length);
    }

    /// <summary>The bits that lie beside a file that is open; null where none do.</summary>
    /// <param name="diff">The file's path.</param>
    /// <param name="file">The file, which nobody writes meanwhile.</param>
    /// <param name="length">Its length in bytes.</param>
    /// <param name="force">Takes bits that are older than the file, too.</param>
    /// <exception cref="GuestMemoryException">InvalidImage: they are damaged, or of another memory; LayerUntrusted: they are older than the file, and so of another one.</exception>
    public static ulong[]? TryLoad(string diff, SafeFileHandle file, ulong length, bool force)
    {
        var words = TryLoad(diff, length);
        if (words is not null && !force && FileStatus.TryGet(PathOf(diff), out var map, follow: true) == 0) DiffTrust.RequireNewer(diff, FileStatus.Get(file), PathOf(diff), map);
        return words;
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
        return RandomAccess.Read(file, begin, 0) == begin.Length && begin.SequenceEqual(DirtyBitmapFile.Magic);
    }

    private static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidImage, $"{path} does not tell which pages of the diff beside it were written: {why}.");
}
