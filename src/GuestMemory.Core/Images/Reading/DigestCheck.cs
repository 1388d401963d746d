using System.Text;

namespace GuestMemory.Core.Images;

/// <summary>Compares an image with the SHA-256 in the file beside it (<see cref="DigestSidecar"/>), which may have lines of other files, too.</summary>
internal static class DigestCheck
{
    private const int DigestLength = 64;
    private const int MaxLength = 1 << 20;

    /// <summary>Compares an image with its digest; false where there is none.</summary>
    /// <exception cref="GuestMemoryException">DigestMismatch; DigestNotFound: the file beside it has no digest of it; NotAFile: what lies beside it is a pipe, a device or a socket.</exception>
    public static bool Verify(ImageBytes image, Action<ulong>? progress, CancellationToken cancellation)
    {
        var path = DigestSidecar.PathOf(image.Path);
        if (!File.Exists(path)) return false;
        var expected = TryReadText(path) is { } text ? Find(text, Path.GetFileName(image.Path)) : null;
        if (expected is null) throw new GuestMemoryException(GuestMemoryError.DigestNotFound, $"{path} has no SHA-256 of {Path.GetFileName(image.Path)}.");
        var actual = RawImage.DigestOf(image.File, image.FileLength, cancellation, progress);
        return actual.Equals(expected, StringComparison.OrdinalIgnoreCase) ? true
            : throw new GuestMemoryException(GuestMemoryError.DigestMismatch, $"{image.Path} is not what {path} was computed of: its SHA-256 is {actual}, and not {expected}.");
    }

    /// <summary>The digest of a name in the text of such a file; null where it has none.</summary>
    internal static string? Find(string text, string name)
    {
        foreach (var each in text.Split('\n'))
        {
            var line = each.TrimEnd('\r');
            // Where a name has a backslash or a line break the line begins with a backslash.
            var escaped = line.StartsWith('\\');
            if (escaped) line = line[1..];
            if (line.Length < DigestLength || line.AsSpan(0, DigestLength).ContainsAnyExcept("0123456789abcdefABCDEF")) continue;
            var rest = line[DigestLength..];
            if (rest.Length > 2 && rest[0] == ' ' && rest[1] is ' ' or '*')
            {
                var found = escaped ? Unescape(rest[2..]) : rest[2..];
                if (Path.GetFileName(found) == name) return line[..DigestLength];
            }
            else if (rest.Length == 0)
            {
                return line;
            }
        }

        return null;
    }

    /// <summary>The text of a file; null where it is too long for digests.</summary>
    private static string? TryReadText(string path)
    {
        RawImage.RequireFile(path);
        using var file = File.OpenRead(path);
        var bytes = new byte[MaxLength + 1];
        var count = file.ReadAtLeast(bytes, bytes.Length, throwOnEndOfStream: false);
        if (count > MaxLength) return null;
        using var reader = new StreamReader(new MemoryStream(bytes, 0, count));
        return reader.ReadToEnd();
    }

    private static string Unescape(string name)
    {
        var result = new StringBuilder(name.Length);
        for (var i = 0; i < name.Length; i++)
        {
            if (name[i] != '\\' || i + 1 == name.Length) result.Append(name[i]);
            else result.Append(name[++i] switch { 'n' => '\n', 'r' => '\r', var other => other });
        }

        return result.ToString();
    }
}
