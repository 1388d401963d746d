using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>JSON documents over a stream socket, one a line, none longer than <see cref="MaxLength"/>. Never waits.</summary>
/// <param name="socket">The socket; its owner is who made it.</param>
/// <param name="keepsDescriptor">Whether a descriptor that comes along is kept for <see cref="TakeDescriptor"/>; else all are closed.</param>
internal sealed class JsonLines(SafeDescriptor socket, bool keepsDescriptor = false)
{
    /// <summary>The longest line, in bytes.</summary>
    public const int MaxLength = 1 << 20;

    private readonly List<SafeDescriptor> _received = [];
    private SafeDescriptor? _descriptor;
    private byte[] _buffer = new byte[4096];
    private int _length;
    private int _scanned;

    /// <summary>Whether the other end has closed the connection and nothing is left to take.</summary>
    public bool IsEnded { get; private set; }

    /// <summary>Whether nothing has come that was not taken.</summary>
    public bool IsEmpty => _length == 0;

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

    /// <summary>The descriptor that came last, or null. The caller owns it.</summary>
    public SafeDescriptor? TakeDescriptor()
    {
        var taken = _descriptor;
        _descriptor = null;
        return taken;
    }

    /// <summary>Sends a line, with a descriptor where one is given; false where the other end is gone or does not read what it asked for.</summary>
    public bool TrySend<T>(T value, JsonTypeInfo<T> type, SafeDescriptor? descriptor = null)
    {
        var line = JsonSerializer.SerializeToUtf8Bytes(value, type);
        Array.Resize(ref line, line.Length + 1);
        line[^1] = (byte)'\n';
        return UnixSocket.TrySend(socket, line, descriptor is null ? [] : [descriptor.Number]) == line.Length;
    }

    private static T Parse<T>(ReadOnlySpan<byte> line, JsonTypeInfo<T> type)
    {
        try
        {
            return JsonSerializer.Deserialize(line, type) ?? throw new JsonException("null");
        }
        catch (JsonException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A line of the control socket is not the expected JSON: {JsonErrorText.Of(exception)}", exception);
        }
    }

    private bool TryFill()
    {
        if (_length == _buffer.Length)
        {
            if (_length >= MaxLength) throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A line of the control socket has more than {MaxLength} bytes.");
            Array.Resize(ref _buffer, Math.Min(_buffer.Length * 4, MaxLength));
        }

        var received = UnixSocket.TryReceive(socket, _buffer.AsSpan(_length), _received, out _);
        foreach (var descriptor in _received) Keep(descriptor);
        _received.Clear();
        if (received == -Errno.EAGAIN) return false;
        if (received <= 0)
        {
            IsEnded = true;
            return false;
        }

        _length += (int)received;
        return true;
    }

    private void Keep(SafeDescriptor descriptor)
    {
        if (!keepsDescriptor)
        {
            descriptor.Dispose();
            return;
        }

        _descriptor?.Dispose();
        _descriptor = descriptor;
    }

    private void Drop(int bytes)
    {
        _buffer.AsSpan(bytes, _length - bytes).CopyTo(_buffer);
        _length -= bytes;
        _scanned = 0;
    }
}
