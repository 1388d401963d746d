using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>A JSON document in a memfd, which one process gives another.</summary>
internal static class JsonFile
{
    public static SafeDescriptor Create<T>(string name, T value, JsonTypeInfo<T> type)
    {
        var json = JsonSerializer.SerializeToUtf8Bytes(value, type);
        var file = Memfd.CreateSealed(name, json.Length, 0);
        try
        {
            using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
            RandomAccess.Write(handle, json, 0);
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <exception cref="JsonException">It is no such document, or has more bytes than <paramref name="maxLength"/>.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    /// <exception cref="NotSupportedException">It is no file.</exception>
    public static T Read<T>(SafeDescriptor file, int maxLength, JsonTypeInfo<T> type)
    {
        using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
        var length = RandomAccess.GetLength(handle);
        if (length <= 0 || length > maxLength) throw new JsonException($"{length} bytes");
        var json = new byte[length];
        var read = RandomAccess.Read(handle, json, 0);
        return JsonSerializer.Deserialize(json.AsSpan(0, read), type) ?? throw new JsonException("null");
    }
}
