using System.Buffers;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>A received message: its bytes, in a rented buffer, and every descriptor that came with it. It owns the descriptors.</summary>
internal sealed class TubeMessage(byte[] buffer) : IDisposable
{
    private bool _taken;

    public List<SafeDescriptor> Descriptors { get; } = [];

    public int Length { get; set; }

    /// <summary>The message as a value; this object keeps the descriptors and closes them.</summary>
    public T Read<T>(JsonTypeInfo<T> type) => DescriptorJson.Deserialize(buffer.AsSpan(0, Length), type, Descriptors, out _);

    /// <summary>The message as a value; the caller owns the descriptors that it names, this object the others.</summary>
    public T Take<T>(JsonTypeInfo<T> type)
    {
        var value = DescriptorJson.Deserialize(buffer.AsSpan(0, Length), type, Descriptors, out var left);
        _taken = true;
        foreach (var descriptor in left) descriptor.Dispose();
        return value;
    }

    public void Dispose()
    {
        ArrayPool<byte>.Shared.Return(buffer);
        if (_taken) return;
        foreach (var descriptor in Descriptors) descriptor.Dispose();
    }
}
