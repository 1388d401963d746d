using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// A connection to the control socket of a handler in a process of its own. It stays open, so that the handler's last words are
/// heard whoever stops it. Any thread may use it; one at a time does.
/// </summary>
internal sealed class UffdControlClient : IDisposable
{
    private const int Slice = 50;
    private static readonly TimeSpan AnswerTimeout = TimeSpan.FromSeconds(5);

    private readonly SafeDescriptor _socket;
    private readonly JsonLines _lines;
    private readonly Lock _lock = new();

    private UffdControlClient(SafeDescriptor socket)
    {
        _socket = socket;
        _lines = new JsonLines(socket);
    }

    /// <summary>The handler's last words, once they have come.</summary>
    public UffdStatus? Ended { get; private set; }

    /// <summary>Whether the other end is gone, with last words or without.</summary>
    public bool IsOver => Ended is not null || _lines.IsEnded;

    /// <summary>Connects; null where nobody listens, in which case the socket was left behind, or where it belongs to somebody else.</summary>
    public static UffdControlClient? TryConnect(string path, out int error)
    {
        var socket = UnixSocket.Create(nonBlocking: true);
        error = UnixSocket.TryConnect(socket, path);
        if (error == 0 && UnixSocket.PeerCredentials(socket).uid == Users.Current) return new UffdControlClient(socket);
        socket.Dispose();
        return null;
    }

    /// <summary>Asks and waits for the answer. Null where the handler has ended: <see cref="Ended"/> are its last words, if it had any.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: no answer within 5 s, or one that is none; or what the handler answers as its error.</exception>
    public UffdStatus? Ask(string request, CancellationToken cancellation)
    {
        lock (_lock)
        {
            if (IsOver) return null;
            _ = _lines.TrySend(new UffdControlRequest { Request = request }, UffdControlJson.Default.UffdControlRequest);
            var asked = Stopwatch.GetTimestamp();
            while (true)
            {
                if (TryRead(out var reply))
                {
                    if (reply.ErrorId is not null) throw new GuestMemoryException(Enum.TryParse<GuestMemoryError>(reply.ErrorId, out var error) ? error : GuestMemoryError.ControlFailed, reply.Message ?? "");
                    return reply.Ended ? null : reply.Handler;
                }

                if (IsOver) return null;
                cancellation.ThrowIfCancellationRequested();
                if (Stopwatch.GetElapsedTime(asked) > AnswerTimeout)
                    throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The handler's process did not answer within {AnswerTimeout.TotalSeconds:0} s.");
                Poll(Slice);
            }
        }
    }

    /// <summary>Waits for the end, for at most some milliseconds; whether it has come.</summary>
    public bool WaitForEnd(int milliseconds)
    {
        lock (_lock)
        {
            if (!IsOver) Poll(Math.Min(milliseconds, Slice));
            while (!IsOver && TryRead(out _))
            {
            }

            return IsOver;
        }
    }

    public void Dispose() => _socket.Dispose();

    private bool TryRead(out UffdControlReply reply)
    {
        var came = _lines.TryTake(UffdControlJson.Default.UffdControlReply, out reply);
        if (came && reply.Ended) Ended = reply.Handler;
        if (IsOver) _socket.Dispose();
        return came;
    }

    private void Poll(int milliseconds)
    {
        using var lease = new DescriptorLease(_socket);
        Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Interop.Poll.POLLIN | Interop.Poll.POLLRDHUP }];
        _ = Interop.Poll.Wait(entry, milliseconds);
    }
}
