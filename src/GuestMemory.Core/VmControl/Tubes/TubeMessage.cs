using System.Buffers;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>A message that came through a tube: its bytes, in a rented buffer, and every descriptor that came along.</summary>
internal sealed class TubeMessage(byte[] buffer) : IDisposable
{
    private bool _taken;

    public List<SafeDescriptor> Descriptors { get; } = [];

    public int Length { get; set; }

    /// <summary>The message as a value whose descriptors stay this object's: they are closed with it.</summary>
    public T Read<T>(JsonTypeInfo<T> type) => DescriptorJson.Deserialize(buffer.AsSpan(0, Length), type, Descriptors, out _);

    /// <summary>The message as a value whose descriptors belong to the caller; what it does not name stays here.</summary>
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
