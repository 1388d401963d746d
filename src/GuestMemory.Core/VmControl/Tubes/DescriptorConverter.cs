using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>Writes a descriptor as its index, see <see cref="DescriptorJson"/>.</summary>
public sealed class DescriptorConverter : JsonConverter<SafeHandle>
{
    /// <inheritdoc/>
    public override SafeHandle Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        reader.TokenType == JsonTokenType.Number && reader.TryGetInt32(out var index) ? DescriptorJson.Take(index) : throw new JsonException("a descriptor is the number of its place");

    /// <inheritdoc/>
    public override void Write(Utf8JsonWriter writer, SafeHandle value, JsonSerializerOptions options) => writer.WriteNumberValue(DescriptorJson.Put(value));
}
