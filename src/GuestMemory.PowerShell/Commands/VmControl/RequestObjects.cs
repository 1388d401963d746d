using System.Buffers;
using System.Collections;
using System.Management.Automation;
using System.Numerics;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Requests of the pipeline: objects of New-VmMemoryRequest, JSON text, or the objects that ConvertFrom-Json makes of it.</summary>
internal static class RequestObjects
{
    private const int MaxDepth = 16;

    /// <summary>The requests that an item stands for; a JSON array has several.</summary>
    /// <exception cref="GuestMemoryException">BadJson.</exception>
    public static IReadOnlyList<VmMemoryRequest> Read(object item, IReadOnlyList<SafeHandle> descriptors)
    {
        var value = item is PSObject wrapped ? wrapped.BaseObject : item;
        if (value is RequestDictionary shown) return [shown.Request];
        if (value is VmMemoryRequest request) return [request];
        var text = value as string ?? ToJson(item);
        try
        {
            if (text.AsSpan().TrimStart() is not ['[', ..]) return [VmMemoryRequest.FromJson(text, descriptors)];
            var elements = Elements(text);
            if (elements.Length == 0) throw Bad("an empty list has none in it.");
            return [.. elements.Select(element => VmMemoryRequest.FromJson(element, descriptors))];
        }
        catch (GuestMemoryException exception) when (text.Contains("\"System.", StringComparison.Ordinal))
        {
            // What is nested deeper ConvertTo-Json replaces by the name of its type.
            throw Bad($"ConvertTo-Json has cut it short. Give it -Depth 10. {exception.Message}", exception);
        }
        catch (GuestMemoryException exception) when (exception.Message.Contains("out of bounds", StringComparison.Ordinal))
        {
            throw Bad($"the open files that it names are given with -Descriptor, in the order of their numbers from 0. {exception.Message}", exception);
        }
    }

    private static string[] Elements(string text)
    {
        try
        {
            using var json = JsonDocument.Parse(text, new JsonDocumentOptions { MaxDepth = MaxDepth });
            return [.. json.RootElement.EnumerateArray().Select(element => element.GetRawText())];
        }
        catch (JsonException exception)
        {
            throw Bad(exception.Message, exception);
        }
    }

    private static string ToJson(object item)
    {
        var text = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(text)) Write(writer, item, 0);
        return Encoding.UTF8.GetString(text.WrittenSpan);
    }

    private static void Write(Utf8JsonWriter writer, object? item, int depth)
    {
        if (depth > MaxDepth) throw Bad("it is nested too deeply");
        var value = item is PSObject wrapped ? wrapped.BaseObject : item;
        switch (value)
        {
            case null:
                writer.WriteNullValue();
                break;
            case bool truth:
                writer.WriteBooleanValue(truth);
                break;
            case string or char or Enum:
                writer.WriteStringValue(value.ToString());
                break;
            case float or double or decimal or BigInteger or Int128 or UInt128 or sbyte or byte or short or ushort or int or uint or long or ulong:
                writer.WriteRawValue(Number(value));
                break;
            case IDictionary dictionary:
                WriteObject(writer, dictionary.Keys.Cast<object>().Select(key => ($"{key}", dictionary[key])), depth);
                break;
            case IEnumerable many:
                writer.WriteStartArray();
                foreach (var element in many) Write(writer, element, depth + 1);
                writer.WriteEndArray();
                break;
            default:
                WriteObject(writer, new PSObject(item).Properties.Where(property => property.IsGettable).Select(property => (property.Name, (object?)property.Value)), depth);
                break;
        }
    }

    private static void WriteObject(Utf8JsonWriter writer, IEnumerable<(string Name, object? Value)> members, int depth)
    {
        writer.WriteStartObject();
        foreach (var (name, value) in members)
        {
            writer.WritePropertyName(name);
            Write(writer, value, depth + 1);
        }

        writer.WriteEndObject();
    }

    /// <summary>A number as JSON; one that was computed as a floating-point number, and is whole, is written as such.</summary>
    private static string Number(object value)
    {
        if (value is not (float or double)) return FormattableString.Invariant($"{value}");
        var number = Convert.ToDouble(value);
        if (!double.IsFinite(number)) throw Bad(FormattableString.Invariant($"{number} is not a number of JSON"));
        return double.IsInteger(number) ? $"{new BigInteger(number)}" : FormattableString.Invariant($"{value}");
    }

    private static GuestMemoryException Bad(string why, Exception? inner = null) => new(GuestMemoryError.BadJson, $"This is not a request: {why}", inner);
}
