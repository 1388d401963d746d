using System.Text;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>The SHA-256 of an image in a file beside it, FILE.sha256, in the format of sha256sum(1): <c>sha256sum -c FILE.sha256</c> in its folder checks it.</summary>
internal static class DigestSidecar
{
    private const int DigestLength = 64;
    private const int MaxLength = 2048;

    public static string PathOf(string image) => image + ".sha256";

    /// <summary>Refuses a place for a digest where none can be, or where something is that is to stay.</summary>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile.</exception>
    public static void RequirePlace(string image, bool overwrite)
    {
        ImageTarget.RefuseSharedLink(PathOf(image));
        RawImage.CheckTarget(PathOf(image), overwrite || IsOne(image));
    }

    /// <summary>Writes the digest of an image, in hexadecimal.</summary>
    public static void Write(string image, string digest)
    {
        var line = Encoding.UTF8.GetBytes(Line(image, digest));
        _ = CompleteFile.Write(PathOf(image), overwrite: true, file =>
        {
            RandomAccess.Write(file, line, 0);
            RandomAccess.FlushToDisk(file);
            return true;
        });
    }

    /// <summary>Takes away the digest of an image that is no longer so. What is no such file stays.</summary>
    public static void Remove(string image)
    {
        if (IsOne(image)) File.Delete(PathOf(image));
    }

    /// <summary>Whether the file beside an image has a digest of that image, and nothing else.</summary>
    private static bool IsOne(string image)
    {
        if (FileStatus.TryGet(PathOf(image), out var status) != 0 || (status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFREG || status.stx_size > MaxLength) return false;
        var text = File.ReadAllText(PathOf(image));
        return text.Length > DigestLength && Line(image, Digest(text)) == text;
    }

    private static string Digest(string line) => line[0] == '\\' ? line[1..(DigestLength + 1)] : line[..DigestLength];

    /// <summary>As sha256sum writes it: a name with a backslash or a line break has those escaped, and the line begins with a backslash then.</summary>
    private static string Line(string image, string digest)
    {
        var name = Path.GetFileName(image);
        var escaped = name.Replace(@"\", @"\\", StringComparison.Ordinal).Replace("\n", @"\n", StringComparison.Ordinal).Replace("\r", @"\r", StringComparison.Ordinal);
        return $"{(escaped == name ? "" : @"\")}{digest}  {escaped}\n";
    }
}
