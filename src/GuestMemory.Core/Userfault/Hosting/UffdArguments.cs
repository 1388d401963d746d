using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The options of a handler as the command line of its process: --socket-path PATH, --allow-user fc, --force. Each property of
/// <see cref="UffdHandlerOptions"/> is one, by its name; an image of a name is JSON: --images '{"name":"web","socket-path":"/run/web.sock","memory-path":"/srv/web.mem"}'.
/// </summary>
internal static class UffdArguments
{
    /// <summary>The command line that says the same.</summary>
    public static IEnumerable<string> From(UffdHandlerOptions options)
    {
        foreach (var (name, value) in JsonSerializer.SerializeToNode(options, UffdOptionsJson.Default.UffdHandlerOptions)!.AsObject())
        {
            foreach (var item in value is JsonArray array ? [.. array] : new[] { value })
            {
                if (item is null || item.GetValueKind() == JsonValueKind.False) continue;
                var text = item is JsonObject image ? image.ToJsonString() : item.ToString();
                // Not given is the same.
                if (text.Length == 0 && value is not JsonArray) continue;
                yield return "--" + name;
                if (item.GetValueKind() != JsonValueKind.True) yield return text;
            }
        }
    }

    /// <summary>Reads a command line.</summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported: an unknown, repeated, missing or wrong argument.</exception>
    public static UffdHandlerOptions Parse(IReadOnlyList<string> arguments)
    {
        // What is not given keeps its default, which the reader of JSON knows nothing of.
        var values = JsonSerializer.SerializeToNode(new UffdHandlerOptions(), UffdOptionsJson.Default.UffdHandlerOptions)!.AsObject();
        var given = new HashSet<string>(StringComparer.Ordinal);
        for (var i = 0; i < arguments.Count; i++)
        {
            if (!arguments[i].StartsWith("--", StringComparison.Ordinal)) throw Wrong($"'{arguments[i]}' stands where an option (--name) must be");
            var name = arguments[i][2..];
            var property = UffdOptionsJson.Default.UffdHandlerOptions.Properties.FirstOrDefault(property => property.Name == name) ?? throw Wrong($"there is no option --{name}");
            if (property.PropertyType == typeof(bool))
            {
                values[name] = true;
                continue;
            }

            if (++i == arguments.Count) throw Wrong($"--{name} needs a value");
            var isList = property.PropertyType != typeof(string) && typeof(System.Collections.IEnumerable).IsAssignableFrom(property.PropertyType);
            var value = property.PropertyType == typeof(IReadOnlyList<UffdImageOptions>) ? ParseImage(arguments[i]) : arguments[i];
            if (!given.Add(name))
            {
                if (!isList) throw Wrong($"--{name} is given twice");
                values[name]!.AsArray().Add(value);
            }
            else
            {
                values[name] = isList ? new JsonArray(value) : value;
            }
        }

        try
        {
            return values.Deserialize(UffdOptionsJson.Default.UffdHandlerOptions)!;
        }
        catch (JsonException exception)
        {
            throw Wrong(JsonErrorText.Of(exception).Replace("JSON deserialization for type 'UffdHandlerOptions' was ", "", StringComparison.Ordinal));
        }
    }

    /// <summary>Reads an image, so that only what is one is put among the others.</summary>
    private static JsonNode ParseImage(string text)
    {
        try
        {
            var image = JsonSerializer.Deserialize(text, UffdOptionsJson.Default.UffdImageOptions) ?? throw new JsonException("null is no image");
            return JsonSerializer.SerializeToNode(image, UffdOptionsJson.Default.UffdImageOptions)!;
        }
        catch (JsonException exception)
        {
            throw Wrong($"'{text}' is no image: {JsonErrorText.Of(exception)}");
        }
    }

    private static GuestMemoryException Wrong(string what) => new(GuestMemoryError.ValueNotSupported, $"Wrong arguments: {what}.");
}

[JsonSourceGenerationOptions(MaxDepth = 8, PropertyNamingPolicy = JsonKnownNamingPolicy.KebabCaseLower, NumberHandling = JsonNumberHandling.AllowReadingFromString, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    Converters = [typeof(NamedConverter<UffdStrategy>), typeof(NamedConverter<UffdOnError>)])]
[JsonSerializable(typeof(UffdHandlerOptions))]
[JsonSerializable(typeof(UffdImageOptions))]
internal sealed partial class UffdOptionsJson : JsonSerializerContext;
