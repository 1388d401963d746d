using System.Text.Json;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>A UUID as an array of 16 numbers.</summary>
internal sealed class UuidConverter : JsonConverter<IReadOnlyList<byte>>
{
    private const int Length = 16;

    public override IReadOnlyList<byte> Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var bytes = new byte[Length];
        if (reader.TokenType != JsonTokenType.StartArray) throw Bad();
        for (var i = 0; i < Length; i++)
        {
            if (!reader.Read() || reader.TokenType != JsonTokenType.Number || !reader.TryGetByte(out bytes[i])) throw Bad();
        }

        return reader.Read() && reader.TokenType == JsonTokenType.EndArray ? bytes : throw Bad();
    }

    public override void Write(Utf8JsonWriter writer, IReadOnlyList<byte> value, JsonSerializerOptions options)
    {
        if (value.Count != Length) throw Bad();
        writer.WriteStartArray();
        foreach (var number in value) writer.WriteNumberValue(number);
        writer.WriteEndArray();
    }

    private static JsonException Bad() => new("a UUID has 16 bytes");
}
