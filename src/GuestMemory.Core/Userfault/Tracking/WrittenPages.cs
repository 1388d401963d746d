using System.Text.Json;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>A <see cref="DirtyBitmap"/> of a VM's region on its way from the handler's process.</summary>
internal sealed record WrittenPages
{
    // All of 4 TiB, written.
    private const int MaxBytes = 1 << 29;

    [JsonRequired]
    public ulong StartAddress { get; init; }

    [JsonRequired]
    public ulong ByteSize { get; init; }

    [JsonRequired]
    public string Source { get; init; } = "";

    [JsonRequired]
    public ulong[] Words { get; init; } = [];

    public static SafeDescriptor ToFile(IEnumerable<DirtyBitmap> bitmaps) =>
        JsonFile.Create("uffd-dirty", bitmaps.Select(static bitmap => new WrittenPages
        {
            StartAddress = bitmap.StartAddress, ByteSize = bitmap.ByteSize, Source = bitmap.Source, Words = bitmap.AsWords().ToArray(),
        }).ToArray(), WrittenPagesJson.Default.IReadOnlyListWrittenPages);

    /// <exception cref="GuestMemoryException">ControlFailed: the file does not hold bitmaps.</exception>
    public static DirtyBitmap[] FromFile(SafeDescriptor file)
    {
        try
        {
            return [.. JsonFile.Read(file, MaxBytes, WrittenPagesJson.Default.IReadOnlyListWrittenPages).Select(static pages => pages.ToBitmap())];
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException or ArgumentException)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The handler's process sent a list of written pages that cannot be read: {JsonErrorText.Of(exception)}", exception);
        }
    }

    /// <exception cref="JsonException">It passes the last address, or has bits behind the last page.</exception>
    /// <exception cref="ArgumentException">It has not as many words as pages need.</exception>
    private DirtyBitmap ToBitmap()
    {
        if (ByteSize > 0 && ByteSize - 1 > ulong.MaxValue - StartAddress) throw new JsonException("a bitmap passes the last address");
        var bitmap = new DirtyBitmap(StartAddress, ByteSize, HostPage.Size, Words, Source);
        return (bitmap.PageCount & 63) == 0 || Words[^1] >> (int)(bitmap.PageCount & 63) == 0 ? bitmap : throw new JsonException("a bitmap has bits behind its last page");
    }
}

[JsonSourceGenerationOptions(MaxDepth = 8, PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, Converters = [typeof(ListConverter<WrittenPages>)])]
[JsonSerializable(typeof(WrittenPages[]))]
[JsonSerializable(typeof(IReadOnlyList<WrittenPages>))]
internal sealed partial class WrittenPagesJson : JsonSerializerContext;
