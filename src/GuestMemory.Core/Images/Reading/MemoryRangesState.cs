using System.Text.Json;

namespace GuestMemory.Core.Images;

/// <summary>
/// The guest ranges of a cloud-hypervisor snapshot: in the state.json beside its memory-ranges file, in the state of the memory manager, as memory_ranges: a table
/// (data) of ranges (gpa, length) in the order of the file. Versions of cloud-hypervisor put that state down as an object, as JSON in text, or as JSON in an array of bytes.
/// </summary>
internal static class MemoryRangesState
{
    private const string Manager = "memory-manager";
    private const string Table = "memory_ranges";
    private const long MaxLength = 64 << 20;
    private const int MaxDepth = 32;
    private static readonly JsonDocumentOptions s_options = new() { MaxDepth = MaxDepth };

    /// <summary>The file that tells the ranges of an image.</summary>
    public static string PathOf(string image) => Path.Combine(Path.GetDirectoryName(Path.GetFullPath(image)) ?? "/", "state.json");

    /// <summary>Reads the ranges of an image.</summary>
    /// <exception cref="GuestMemoryException">LayoutMismatch: they are not to be had, or contradict each other.</exception>
    public static ImageLayout Read(string image)
    {
        var path = PathOf(image);
        byte[] text;
        try
        {
            RawImage.RequireFile(path);
            using var file = File.OpenHandle(path);
            if (RandomAccess.GetLength(file) > MaxLength) throw Unknown(path, "it is too long");
            text = new byte[RandomAccess.GetLength(file)];
            if (RandomAccess.Read(file, text, 0) != text.Length) throw Unknown(path, "it changes");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new GuestMemoryException(GuestMemoryError.LayoutMismatch, $"The guest addresses of {image} are in the {Path.GetFileName(path)} of its snapshot, which cannot be read: {exception.Message} Give its ranges.", exception);
        }

        return Parse(text, path);
    }

    /// <summary>Finds the ranges in a state.</summary>
    /// <exception cref="GuestMemoryException">LayoutMismatch.</exception>
    internal static ImageLayout Parse(ReadOnlyMemory<byte> text, string path)
    {
        try
        {
            using var document = JsonDocument.Parse(text, s_options);
            var ranges = Find(document.RootElement, isManager: false, nesting: 0) ?? throw Unknown(path, $"it has no table of ranges ({Manager}, {Table}) that is JSON");
            return ImageLayout.FromRanges(ranges);
        }
        catch (Exception exception) when (exception is JsonException or FormatException or InvalidOperationException)
        {
            // The message of the parser may quote the text.
            throw Unknown(path, "it is no state of a snapshot");
        }
    }

    /// <summary>The first table of ranges inside the memory manager's state.</summary>
    private static List<ImageRange>? Find(JsonElement element, bool isManager, int nesting)
    {
        switch (element.ValueKind)
        {
            case JsonValueKind.Object:
                if (isManager && element.TryGetProperty(Table, out var table)) return Ranges(table);
                foreach (var property in element.EnumerateObject())
                {
                    if (Find(property.Value, isManager || property.NameEquals(Manager), nesting) is { } found) return found;
                }

                return null;
            case JsonValueKind.String when isManager && nesting == 0 && element.GetString() is ['{', ..] text:
                return FindIn(System.Text.Encoding.UTF8.GetBytes(text));
            case JsonValueKind.Array when isManager && nesting == 0 && element.GetArrayLength() > 0 && element[0].ValueKind == JsonValueKind.Number:
                var bytes = new List<byte>(element.GetArrayLength());
                foreach (var item in element.EnumerateArray())
                {
                    if (item.ValueKind != JsonValueKind.Number || !item.TryGetByte(out var value)) return null;
                    bytes.Add(value);
                }

                return bytes[0] == '{' ? FindIn(bytes.ToArray()) : null;
            default:
                return null;
        }
    }

    private static List<ImageRange>? FindIn(byte[] text)
    {
        using var document = JsonDocument.Parse(text, s_options);
        return Find(document.RootElement, isManager: true, nesting: 1);
    }

    private static List<ImageRange>? Ranges(JsonElement table)
    {
        var list = table.ValueKind == JsonValueKind.Object && table.TryGetProperty("data", out var data) ? data : table;
        if (list.ValueKind != JsonValueKind.Array || list.GetArrayLength() > ImageMap.MaxRegions) return null;
        var ranges = new List<ImageRange>(list.GetArrayLength());
        foreach (var item in list.EnumerateArray())
        {
            if (item.ValueKind != JsonValueKind.Object || !item.TryGetProperty("gpa", out var address) || !item.TryGetProperty("length", out var length)
                || address.ValueKind != JsonValueKind.Number || length.ValueKind != JsonValueKind.Number) return null;
            ranges.Add(new ImageRange(address.GetUInt64(), length.GetUInt64()));
        }

        return ranges;
    }

    private static GuestMemoryException Unknown(string path, string why) =>
        new(GuestMemoryError.LayoutMismatch, $"{path} does not tell the guest addresses of the memory beside it: {why}. Give its ranges.");
}
