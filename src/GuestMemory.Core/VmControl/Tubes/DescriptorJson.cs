using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// JSON in which a descriptor is a number: its index in a list that goes beside the text, from 0, in the order of the text (crosvm's
/// descriptor reflection).
/// </summary>
public static class DescriptorJson
{
    [ThreadStatic]
    private static ICollection<SafeHandle>? t_written;

    [ThreadStatic]
    private static SafeHandle?[]? t_read;

    /// <summary>Writes a value, and adds its descriptors to a list.</summary>
    /// <exception cref="GuestMemoryException">BadJson: the value cannot be written.</exception>
    public static byte[] Serialize<T>(T value, JsonTypeInfo<T> type, ICollection<SafeHandle> descriptors)
    {
        ArgumentNullException.ThrowIfNull(descriptors);
        var outer = t_written;
        t_written = descriptors;
        try
        {
            return JsonSerializer.SerializeToUtf8Bytes(value, type);
        }
        catch (JsonException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.BadJson, $"This cannot be written as JSON: {JsonErrorText.Of(exception)}", exception);
        }
        finally
        {
            t_written = outer;
        }
    }

    /// <summary>Reads a value whose descriptors are in a list. Each may be named once.</summary>
    /// <exception cref="GuestMemoryException">BadJson.</exception>
    public static T Deserialize<T>(ReadOnlySpan<byte> json, JsonTypeInfo<T> type, IReadOnlyList<SafeHandle> descriptors) =>
        Deserialize(json, type, descriptors, out _);

    internal static T Deserialize<T>(ReadOnlySpan<byte> json, JsonTypeInfo<T> type, IReadOnlyList<SafeHandle> descriptors, out IEnumerable<SafeHandle> left)
    {
        var outer = t_read;
        var source = new SafeHandle?[descriptors.Count];
        for (var i = 0; i < source.Length; i++) source[i] = descriptors[i];
        t_read = source;
        try
        {
            var value = JsonSerializer.Deserialize(json, type) ?? throw new JsonException("null stands where a value must be");
            left = source.OfType<SafeHandle>();
            return value;
        }
        catch (JsonException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.BadJson, $"This is not the expected JSON: {JsonErrorText.Of(exception)}", exception);
        }
        finally
        {
            t_read = outer;
        }
    }

    internal static int Put(SafeHandle descriptor)
    {
        var list = t_written ?? throw new JsonException("a descriptor can be written only where it can go along");
        list.Add(descriptor);
        return list.Count - 1;
    }

    internal static SafeHandle Take(int index)
    {
        var source = t_read ?? throw new JsonException("a descriptor can be read only where it came along");
        if (index < 0 || index >= source.Length) throw new JsonException($"descriptor {index} is out of bounds: {source.Length} came along");
        var descriptor = source[index] ?? throw new JsonException($"descriptor {index} was already taken");
        source[index] = null;
        return descriptor;
    }
}
