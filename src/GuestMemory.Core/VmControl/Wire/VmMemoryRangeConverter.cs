using System.Text.Json;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>A range of guest memory as <c>[address,size]</c>.</summary>
internal sealed class VmMemoryRangeConverter : JsonConverter<VmMemoryRange>
{
    public override VmMemoryRange Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        if (reader.TokenType != JsonTokenType.StartArray) throw Bad();
        var range = new VmMemoryRange(Number(ref reader), Number(ref reader));
        return reader.Read() && reader.TokenType == JsonTokenType.EndArray ? range : throw Bad();
    }

    public override void Write(Utf8JsonWriter writer, VmMemoryRange value, JsonSerializerOptions options)
    {
        writer.WriteStartArray();
        writer.WriteNumberValue(value.Address);
        writer.WriteNumberValue(value.Size);
        writer.WriteEndArray();
    }

    private static ulong Number(ref Utf8JsonReader reader) =>
        reader.Read() && reader.TokenType == JsonTokenType.Number && reader.TryGetUInt64(out var number) ? number : throw Bad();

    private static JsonException Bad() => new("a range is [address,size]");
}
