using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>The channel between supervisor and worker: whole messages, each with up to five descriptors. Sending is safe from any thread.</summary>
internal sealed class Channel(SafeDescriptor socket) : IDisposable
{
    private readonly byte[] _buffer = new byte[64 << 10];

    public SafeDescriptor Socket => socket;

    /// <summary>Whether the other end is gone.</summary>
    public bool IsEnded { get; private set; }

    /// <summary>Sends a message; false where the other end is gone or does not keep up.</summary>
    public bool TrySend(ChannelMessage message, params ReadOnlySpan<SafeDescriptor> descriptors)
    {
        Span<int> numbers = stackalloc int[descriptors.Length];
        for (var i = 0; i < numbers.Length; i++) numbers[i] = descriptors[i].Number;
        var text = JsonSerializer.SerializeToUtf8Bytes(message, HostJson.Default.ChannelMessage);
        return UnixSocket.TrySend(socket, text, numbers) == text.Length;
    }

    /// <summary>Receives a message if there is one. Who takes it owns the descriptors.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: it is not what the other end sends.</exception>
    public ChannelMessage? TryReceive(List<SafeDescriptor> descriptors)
    {
        var received = UnixSocket.TryReceive(socket, _buffer, descriptors, out var truncated);
        if (received == -Errno.EAGAIN) return null;
        if (received <= 0)
        {
            IsEnded = true;
            return null;
        }

        try
        {
            return truncated ? throw new JsonException("It was cut short") : JsonSerializer.Deserialize(_buffer.AsSpan(0, (int)received), HostJson.Default.ChannelMessage) ?? throw new JsonException("null");
        }
        catch (JsonException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A message between supervisor and worker is wrong: {JsonErrorText.Of(exception)}", exception);
        }
    }

    public void Dispose() => socket.Dispose();
}
