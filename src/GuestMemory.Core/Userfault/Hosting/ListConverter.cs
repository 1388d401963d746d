using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.Userfault;

/// <summary>Reads a list in which no null stands. The source generator must know <c>T[]</c>.</summary>
internal sealed class ListConverter<T> : JsonConverter<IReadOnlyList<T>>
    where T : class
{
    public override IReadOnlyList<T> Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        JsonSerializer.Deserialize(ref reader, ArrayType(options)) is { } list && !list.Contains(null) ? list : throw new JsonException("null stands in a list");

    public override void Write(Utf8JsonWriter writer, IReadOnlyList<T> value, JsonSerializerOptions options) =>
        JsonSerializer.Serialize(writer, value as T[] ?? [.. value], ArrayType(options));

    private static JsonTypeInfo<T[]> ArrayType(JsonSerializerOptions options) => (JsonTypeInfo<T[]>)options.GetTypeInfo(typeof(T[]));
}
