using System.Text.Json;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>A hand-over that has come completely. The caller owns its descriptors.</summary>
/// <param name="Mappings">The mapping list.</param>
/// <param name="Userfaultfd">The userfaultfd.</param>
/// <param name="Memory">The memfd of ordinary pages that is the VM's memory, each region at its offset, where the VMM shares it (e2b's fork of Firecracker); else null.</param>
internal sealed record UffdHandover(IReadOnlyList<GuestRegionUffdMapping> Mappings, SafeDescriptor Userfaultfd, SafeDescriptor? Memory = null)
{
    /// <summary>Closes the descriptors.</summary>
    public void Close()
    {
        Userfaultfd.Dispose();
        Memory?.Dispose();
    }
}

/// <summary>
/// The handler's side of the hand-over: takes what comes over a stream until a JSON document is whole and a descriptor came with
/// it. It never waits, and it is fed as often as the socket is readable; a VMM may split a message or send several.
/// </summary>
internal sealed class UffdHandoverReceiver(SafeDescriptor socket) : IDisposable
{
    private const int MaxTokenBytes = 4096;
    private const int FirstBytes = 4096;

    // A userfaultfd and a memfd. The kernel may join the end of one message to the beginning, and so the descriptors, of the next.
    private const int MaxInMessage = 2;
    private const int MaxDescriptors = 2 * MaxInMessage;

    // A VMM that sends without end is received from again after the others.
    private const int MaxReceives = 64;

    private readonly List<SafeDescriptor> _descriptors = [];
    // Of hundreds of VMs that have said all they have to say, none keeps one.
    private byte[] _buffer = [];
    private int _length;
    private int _scanned;
    private JsonReaderState _json;

    /// <summary>Whether a message has begun and not ended.</summary>
    public bool IsPartial => _length > 0 || _descriptors.Count > 0;

    /// <summary>Receives what there is. Returns the next complete hand-over, or null; <paramref name="ended"/> at the end of the stream.</summary>
    /// <exception cref="GuestMemoryException">The message is wrong; every descriptor that came with it is closed by <see cref="Dispose"/>.</exception>
    public UffdHandover? Receive(out bool ended)
    {
        ended = false;
        for (var receives = 0; ; receives++)
        {
            if (_length > 0 && TryTake() is { } ready) return ready;
            if (receives == MaxReceives) return null;
            if (_length == _buffer.Length)
            {
                if (_length >= UffdMappingList.MaxJsonBytes) throw UffdMappingList.TooLarge(_length);
                Array.Resize(ref _buffer, Math.Clamp(_buffer.Length * 4, FirstBytes, UffdMappingList.MaxJsonBytes));
            }

            var before = _descriptors.Count;
            var received = UnixSocket.TryReceive(socket, _buffer.AsSpan(_length), _descriptors, out var truncated);
            if (truncated && _descriptors.Count == before)
            {
                throw new GuestMemoryException(GuestMemoryError.HandoverNoDescriptor,
                    "The descriptor of the hand-over could not be received: this process may open no more files. Raise the limit ('ulimit -n').");
            }

            if (truncated || _descriptors.Count > before + MaxInMessage || _descriptors.Count > MaxDescriptors) throw TooMany();
            if (_descriptors.Count == before + MaxInMessage && Userfaultfd.IsUserfaultfd(_descriptors[^1].Number)) throw TooMany();

            if (received == -Errno.EAGAIN)
            {
                if (_length == 0) _buffer = [];
                return null;
            }

            if (received <= 0)
            {
                ended = true;
                if (IsPartial)
                {
                    throw new GuestMemoryException(GuestMemoryError.PeerClosed,
                        $"The VMM closed the connection in the middle of the hand-over, after {_length} bytes and {_descriptors.Count} descriptors.");
                }

                return null;
            }

            _length += (int)received;
        }
    }

    public void Dispose()
    {
        foreach (var descriptor in _descriptors) descriptor.Dispose();
        _descriptors.Clear();
    }

    /// <summary>Goes on scanning where it stopped, so that a message in a thousand pieces costs no more than one in a single piece.</summary>
    private UffdHandover? TryTake()
    {
        if (_scanned == 0) SkipWhiteSpace();
        var reader = new Utf8JsonReader(_buffer.AsSpan(_scanned, _length - _scanned), isFinalBlock: false, _json);
        try
        {
            while (reader.Read())
            {
                // However the stream is cut.
                if (reader.ValueSpan.Length > MaxTokenBytes) throw LongToken();
                if (reader.CurrentDepth == 0 && reader.TokenType is not (JsonTokenType.StartArray or JsonTokenType.StartObject))
                    return Complete(_scanned + (int)reader.BytesConsumed);
            }
        }
        catch (JsonException exception)
        {
            throw UffdMappingList.BadJson(exception);
        }

        _scanned += (int)reader.BytesConsumed;
        _json = reader.CurrentState;
        return _length - _scanned <= MaxTokenBytes ? null : throw UffdMappingList.BadJson(LongToken());
    }

    private static JsonException LongToken() => new($"a token is longer than {MaxTokenBytes} bytes");

    private UffdHandover Complete(int end)
    {
        var mappings = UffdMappingList.FromJson(_buffer.AsSpan(0, end));
        if (_descriptors.Count == 0)
            throw new GuestMemoryException(GuestMemoryError.HandoverNoDescriptor, "The hand-over came without a descriptor; a userfaultfd is expected.");
        var descriptor = _descriptors[0];
        var memory = _descriptors.Count > 1 && !Userfaultfd.IsUserfaultfd(_descriptors[1].Number) ? _descriptors[1] : null;
        var count = memory is null ? 1 : MaxInMessage;
        if (_descriptors.Count > count && end == _length) throw TooMany();
        if (!Userfaultfd.IsUserfaultfd(descriptor.Number))
            throw new GuestMemoryException(GuestMemoryError.HandoverNotUserfaultfd, "The first descriptor that came with the hand-over is not a userfaultfd.");
        if (memory is not null) UffdMappingList.CheckMemory(mappings, memory);
        Userfaultfd.SetNonBlocking(descriptor.Number);
        _descriptors.RemoveRange(0, count);
        Drop(end);
        _scanned = 0;
        _json = default;
        return new UffdHandover(mappings, descriptor, OrdinaryPages(memory));
    }

    /// <summary>A memfd that can be read beside the VM. Which pages one of hugetlbfs has the kernel does not say, and those that it lacks would read as zeros.</summary>
    private static SafeDescriptor? OrdinaryPages(SafeDescriptor? memory)
    {
        if (memory is null || FileStatus.HugetlbfsPageSize(memory) == 0) return memory;
        memory.Dispose();
        return null;
    }

    private void SkipWhiteSpace()
    {
        var text = _buffer.AsSpan(0, _length).IndexOfAnyExcept(" \t\r\n"u8);
        Drop(text < 0 ? _length : text);
    }

    private void Drop(int bytes)
    {
        if (bytes == 0) return;
        _buffer.AsSpan(bytes, _length - bytes).CopyTo(_buffer);
        _length -= bytes;
    }

    private GuestMemoryException TooMany() => new(GuestMemoryError.HandoverTooManyDescriptors,
        $"The hand-over came with {_descriptors.Count} descriptors or more; a userfaultfd is expected, and at most a memfd behind it.");
}
