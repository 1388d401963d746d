using System.Diagnostics;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>The channel between supervisor and worker: whole messages, each with up to five descriptors. Sending is safe from any thread.</summary>
internal sealed class Channel(SafeDescriptor socket) : IDisposable
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

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

    /// <summary>The same to a process that may be busy with its start, or with what was sent before; false where it is gone, or has taken nothing for 10 s.</summary>
    public bool TrySendPatiently(ChannelMessage message, params ReadOnlySpan<SafeDescriptor> descriptors)
    {
        for (var started = Stopwatch.GetTimestamp(); !TrySend(message, descriptors); Thread.Sleep(1))
        {
            // What waits in it may be more descriptors than may wait, which no poll tells.
            if (UnixSocket.HasPeerEnded(socket) || Stopwatch.GetElapsedTime(started) > s_patience) return false;
        }

        return true;
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
