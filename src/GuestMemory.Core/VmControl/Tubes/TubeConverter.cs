using System.Text.Json;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>Writes a tube so that it can go through a tube: <c>{"socket":{"socket":INDEX}}</c>.</summary>
public sealed class TubeConverter : JsonConverter<Tube>
{
    /// <inheritdoc/>
    public override Tube Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        Enter(ref reader);
        Enter(ref reader);
        if (!reader.Read() || reader.TokenType != JsonTokenType.Number || !reader.TryGetInt32(out var index)) throw Bad();
        for (var i = 0; i < 2; i++)
        {
            if (!reader.Read() || reader.TokenType != JsonTokenType.EndObject) throw Bad();
        }

        return DescriptorJson.Take(index) is SafeDescriptor socket ? new Tube(socket) : throw Bad();
    }

    /// <inheritdoc/>
    public override void Write(Utf8JsonWriter writer, Tube value, JsonSerializerOptions options)
    {
        ArgumentNullException.ThrowIfNull(writer);
        ArgumentNullException.ThrowIfNull(value);
        writer.WriteStartObject();
        writer.WriteStartObject("socket"u8);
        writer.WriteNumber("socket"u8, DescriptorJson.Put(value.Socket));
        writer.WriteEndObject();
        writer.WriteEndObject();
    }

    /// <summary>The start of an object whose first member is the socket; the reader stands at it, or before it.</summary>
    private static void Enter(ref Utf8JsonReader reader)
    {
        if (reader.TokenType == JsonTokenType.PropertyName && !reader.Read()) throw Bad();
        if (reader.TokenType != JsonTokenType.StartObject || !reader.Read() || reader.TokenType != JsonTokenType.PropertyName || !reader.ValueTextEquals("socket"u8)) throw Bad();
    }

    private static JsonException Bad() => new("a tube is {\"socket\":{\"socket\":INDEX}}");
}
