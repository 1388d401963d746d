using System.Text.Json;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.Userfault;

/// <summary>Reads a choice by the name of its value, and nothing else: the converter of .NET also takes numbers, which may stand for no value.</summary>
internal sealed class NamedConverter<T> : JsonConverter<T>
    where T : struct, Enum
{
    public override T Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        TryParse(reader.TokenType == JsonTokenType.String ? reader.GetString() : null, out var value)
            ? value
            : throw new JsonException($"a {typeof(T).Name} is one of {string.Join(", ", Enum.GetNames<T>())}");

    public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options) => writer.WriteStringValue(value.ToString());

    /// <summary>The value of a name, in upper or lower case; false for anything else.</summary>
    public static bool TryParse(string? name, out T value) =>
        Enum.TryParse(name, ignoreCase: true, out value) && string.Equals(Enum.GetName(value), name, StringComparison.OrdinalIgnoreCase);
}
