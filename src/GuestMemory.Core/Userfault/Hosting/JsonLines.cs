using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>JSON documents over a stream socket, one a line, none longer than <see cref="MaxLength"/>. Never waits.</summary>
internal sealed class JsonLines(SafeDescriptor socket)
{
    /// <summary>The longest line, in bytes.</summary>
    public const int MaxLength = 1 << 20;

    private readonly List<SafeDescriptor> _unwanted = [];
    private byte[] _buffer = new byte[4096];
    private int _length;
    private int _scanned;

    /// <summary>Whether the other end has closed the connection and nothing is left to take.</summary>
    public bool IsEnded { get; private set; }

    /// <summary>Takes the next line that is complete; false where none is, see <see cref="IsEnded"/>.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: a line is too long or not the JSON it must be.</exception>
    public bool TryTake<T>(JsonTypeInfo<T> type, out T value)
    {
        while (true)
        {
            var end = _buffer.AsSpan(_scanned, _length - _scanned).IndexOf((byte)'\n');
            if (end >= 0)
            {
                value = Parse(_buffer.AsSpan(0, _scanned + end), type);
                Drop(_scanned + end + 1);
                return true;
            }

            _scanned = _length;
            value = default!;
            if (IsEnded || !TryFill()) return false;
        }
    }

    /// <summary>Sends a line; false where the other end is gone or does not read what it asked for.</summary>
    public bool TrySend<T>(T value, JsonTypeInfo<T> type)
    {
        var line = JsonSerializer.SerializeToUtf8Bytes(value, type);
        Array.Resize(ref line, line.Length + 1);
        line[^1] = (byte)'\n';
        return UnixSocket.TrySend(socket, line, []) == line.Length;
    }

    private static T Parse<T>(ReadOnlySpan<byte> line, JsonTypeInfo<T> type)
    {
        try
        {
            return JsonSerializer.Deserialize(line, type) ?? throw new JsonException("null");
        }
        catch (JsonException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A line of the control socket is not the JSON that it must be: {exception.Message}", exception);
        }
    }

    private bool TryFill()
    {
        if (_length == _buffer.Length)
        {
            if (_length >= MaxLength) throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A line of the control socket has more than {MaxLength} bytes.");
            Array.Resize(ref _buffer, Math.Min(_buffer.Length * 4, MaxLength));
        }

        var received = UnixSocket.TryReceive(socket, _buffer.AsSpan(_length), _unwanted, out _);
        foreach (var descriptor in _unwanted) descriptor.Dispose();
        _unwanted.Clear();
        if (received == -Errno.EAGAIN) return false;
        if (received <= 0)
        {
            IsEnded = true;
            return false;
        }

        _length += (int)received;
        return true;
    }

    private void Drop(int bytes)
    {
        _buffer.AsSpan(bytes, _length - bytes).CopyTo(_buffer);
        _length -= bytes;
        _scanned = 0;
    }
}
