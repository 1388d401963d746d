using System.Text.Json;
using System.Text.Json.Serialization;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary><c>"AnyLength"</c>, or <c>{"U32":5}</c>, or <c>{"U32":null}</c> for any value.</summary>
internal sealed class DatamatchConverter : JsonConverter<Datamatch>
{
    private const string Form = "a datamatch is \"AnyLength\", or an object with one of U8, U16, U32 and U64, whose value is a number that fits, or null";

    public override Datamatch Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        if (reader.TokenType == JsonTokenType.String && reader.ValueTextEquals("AnyLength"u8)) return Datamatch.AnyLength;
        if (reader.TokenType != JsonTokenType.StartObject || !reader.Read() || reader.TokenType != JsonTokenType.PropertyName) throw new JsonException(Form);
        var name = reader.GetString();
        ulong value = 0;
        if (!reader.Read() || (reader.TokenType != JsonTokenType.Null && (reader.TokenType != JsonTokenType.Number || !reader.TryGetUInt64(out value)))) throw new JsonException(Form);
        var datamatch = Of(name, reader.TokenType == JsonTokenType.Null ? null : value);
        return reader.Read() && reader.TokenType == JsonTokenType.EndObject ? datamatch : throw new JsonException(Form);
    }

    public override void Write(Utf8JsonWriter writer, Datamatch value, JsonSerializerOptions options)
    {
        if (value.Length == 0)
        {
            writer.WriteStringValue("AnyLength");
            return;
        }

        writer.WriteStartObject();
        writer.WritePropertyName($"U{value.Length * 8}");
        if (value.Value is { } number) writer.WriteNumberValue(number);
        else writer.WriteNullValue();
        writer.WriteEndObject();
    }

    private static Datamatch Of(string? name, ulong? value) => (name, value) switch
    {
        ("U8", null or <= byte.MaxValue) => Datamatch.U8((byte?)value),
        ("U16", null or <= ushort.MaxValue) => Datamatch.U16((ushort?)value),
        ("U32", null or <= uint.MaxValue) => Datamatch.U32((uint?)value),
        ("U64", _) => Datamatch.U64(value),
        _ => throw new JsonException(Form),
    };
}
