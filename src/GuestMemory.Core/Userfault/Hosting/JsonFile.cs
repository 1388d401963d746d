using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>A JSON document in a memfd, which one process gives another.</summary>
internal static class JsonFile
{
    /// <param name="name">The file's name, for people.</param>
    /// <param name="value">What it holds.</param>
    /// <param name="type">Its type.</param>
    /// <param name="room">How many bytes longer it may become by <see cref="Write"/>.</param>
    public static SafeDescriptor Create<T>(string name, T value, JsonTypeInfo<T> type, int room = 0)
    {
        var json = JsonSerializer.SerializeToUtf8Bytes(value, type);
        var file = Memfd.CreateSealed(name, json.Length + room, 0);
        try
        {
            Write(file, json);
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Replaces the document; spaces fill the rest of the file. What the old and the new one begin with stays as it is, also for a process that is killed meanwhile.</summary>
    /// <exception cref="IOException">It has no room for it.</exception>
    public static void Write<T>(SafeDescriptor file, T value, JsonTypeInfo<T> type) => Write(file, JsonSerializer.SerializeToUtf8Bytes(value, type));

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

    private static void Write(SafeDescriptor file, byte[] json)
    {
        using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
        var length = json.Length;
        var room = RandomAccess.GetLength(handle);
        if (room < length) throw new IOException($"Its file of {room} bytes has no room for {length}.");
        Array.Resize(ref json, (int)room);
        json.AsSpan(length).Fill((byte)' ');
        RandomAccess.Write(handle, json, 0);
    }
}
