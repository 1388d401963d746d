using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.VmControl;

/// <summary>A range as <c>{"start":0,"end":4095}</c>; members that are not known are refused.</summary>
internal sealed class AddressIntervalConverter : JsonConverter<AddressInterval>
{
    public override AddressInterval Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var wire = JsonSerializer.Deserialize(ref reader, WireType(options)) ?? throw new JsonException("a range has start and end");
        return new AddressInterval(wire.Start, wire.End);
    }

    public override void Write(Utf8JsonWriter writer, AddressInterval value, JsonSerializerOptions options) =>
        JsonSerializer.Serialize(writer, new WireRange(value.Start, value.End), WireType(options));

    private static JsonTypeInfo<WireRange> WireType(JsonSerializerOptions options) => (JsonTypeInfo<WireRange>)options.GetTypeInfo(typeof(WireRange));
}

[JsonUnmappedMemberHandling(JsonUnmappedMemberHandling.Disallow)]
internal sealed record WireRange(ulong Start, ulong End);
