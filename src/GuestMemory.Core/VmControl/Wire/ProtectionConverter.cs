using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.VmControl;

/// <summary>A protection as <c>{"read":true,"write":false}</c>.</summary>
internal sealed class ProtectionConverter : JsonConverter<MemoryProtection>
{
    public override MemoryProtection Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var wire = JsonSerializer.Deserialize(ref reader, WireType(options)) ?? throw new JsonException("a protection has read and write");
        return (wire.Read ? MemoryProtection.Read : MemoryProtection.None) | (wire.Write ? MemoryProtection.Write : MemoryProtection.None);
    }

    public override void Write(Utf8JsonWriter writer, MemoryProtection value, JsonSerializerOptions options)
    {
        if ((value & ~MemoryProtection.ReadWrite) != 0) throw new JsonException($"a request can ask for reading and writing only, not for {value}");
        JsonSerializer.Serialize(writer, new WireProtection((value & MemoryProtection.Read) != 0, (value & MemoryProtection.Write) != 0), WireType(options));
    }

    private static JsonTypeInfo<WireProtection> WireType(JsonSerializerOptions options) => (JsonTypeInfo<WireProtection>)options.GetTypeInfo(typeof(WireProtection));
}

internal sealed record WireProtection(bool Read, bool Write);
