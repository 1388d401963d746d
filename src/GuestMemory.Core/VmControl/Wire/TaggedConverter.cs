using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// An enum as serde writes it: a variant without content is its name, any other <c>{"Name":content}</c>.
/// </summary>
internal abstract class TaggedConverter<T> : JsonConverter<T>
    where T : notnull
{
    private readonly List<Variant> _variants = [];

    public override T Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        if (reader.TokenType == JsonTokenType.String) return Named(reader.GetString()!).ReadName();
        if (reader.TokenType != JsonTokenType.StartObject || !reader.Read() || reader.TokenType != JsonTokenType.PropertyName)
            throw new JsonException($"a {Describe()} is a name, or an object with one member");
        var variant = Named(reader.GetString()!);
        reader.Read();
        var value = variant.ReadContent(ref reader, options);
        return reader.Read() && reader.TokenType == JsonTokenType.EndObject ? value : throw new JsonException($"a {Describe()} has one member");
    }

    public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options) =>
        (_variants.Find(variant => variant.Matches(value)) ?? throw new JsonException($"{value} is no {Describe()}")).Write(writer, value, options);

    /// <summary>A variant without content.</summary>
    protected void Unit(string name, T value) => _variants.Add(new UnitVariant(name, value));

    /// <summary>A variant whose members are the content.</summary>
    protected void Struct<TVariant>()
        where TVariant : class, T => _variants.Add(new ContentVariant<TVariant>(typeof(TVariant).Name, static value => value as TVariant, static content => content));

    /// <summary>A variant around one value; <paramref name="content"/> is null for another variant.</summary>
    protected void Newtype<TContent>(string name, Func<T, object?> content, Func<TContent, T> make)
        where TContent : notnull => _variants.Add(new ContentVariant<TContent>(name, content, make));

    private static string Describe() => typeof(T).Name;

    private Variant Named(string name) => _variants.Find(variant => variant.Name == name) ?? throw new JsonException($"'{name}' is no {Describe()}; there are {string.Join(", ", _variants.Select(static variant => variant.Name))}");

    private abstract class Variant(string name)
    {
        public string Name { get; } = name;

        public abstract bool Matches(T value);

        public virtual T ReadName() => throw new JsonException($"{Name} has a content");

        public abstract T ReadContent(ref Utf8JsonReader reader, JsonSerializerOptions options);

        public abstract void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options);
    }

    private sealed class UnitVariant(string name, T instance) : Variant(name)
    {
        public override bool Matches(T value) => instance.Equals(value);

        public override T ReadName() => instance;

        public override T ReadContent(ref Utf8JsonReader reader, JsonSerializerOptions options) =>
            reader.TokenType == JsonTokenType.Null ? instance : throw new JsonException($"{Name} has no content");

        public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options) => writer.WriteStringValue(Name);
    }

    private sealed class ContentVariant<TContent>(string name, Func<T, object?> content, Func<TContent, T> make) : Variant(name)
        where TContent : notnull
    {
        public override bool Matches(T value) => content(value) is not null;

        public override T ReadContent(ref Utf8JsonReader reader, JsonSerializerOptions options) =>
            make(JsonSerializer.Deserialize(ref reader, Type(options)) ?? throw new JsonException($"{Name} has a content"));

        public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options)
        {
            writer.WriteStartObject();
            writer.WritePropertyName(Name);
            JsonSerializer.Serialize(writer, (TContent)content(value)!, Type(options));
            writer.WriteEndObject();
        }

        private static JsonTypeInfo<TContent> Type(JsonSerializerOptions options) => (JsonTypeInfo<TContent>)options.GetTypeInfo(typeof(TContent));
    }
}
