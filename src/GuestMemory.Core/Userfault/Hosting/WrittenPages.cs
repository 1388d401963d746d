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
        }).ToArray(), WrittenPagesJson.Default.WrittenPagesArray);

    /// <exception cref="GuestMemoryException">ControlFailed: the file does not hold bitmaps.</exception>
    public static DirtyBitmap[] FromFile(SafeDescriptor file)
    {
        try
        {
            return [.. JsonFile.Read(file, MaxBytes, WrittenPagesJson.Default.WrittenPagesArray)
                .Select(static pages => new DirtyBitmap(pages.StartAddress, pages.ByteSize, HostPage.Size, pages.Words, pages.Source))];
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException or ArgumentException)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The handler's process sent a list of written pages that cannot be read: {exception.Message}", exception);
        }
    }
}

[JsonSourceGenerationOptions(MaxDepth = 8, PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(WrittenPages[]))]
internal sealed partial class WrittenPagesJson : JsonSerializerContext;
