using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

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
    // Requests without an answer: that of one which was given up may still come.
    private int _open;

    private UffdControlClient(SafeDescriptor socket)
    {
        _socket = socket;
        _lines = new JsonLines(socket, keepsDescriptor: true);
    }

    /// <summary>The handler's last words, once they have come.</summary>
    public UffdStatus? Ended { get; private set; }

    /// <summary>Whether the other end is gone, with last words or without.</summary>
    public bool IsOver => Ended is not null || _lines.IsEnded;

    /// <summary>Connects; null where no process listens, in which case the socket was left behind, or where it belongs to another user.</summary>
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
    /// <param name="request">The request.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    /// <param name="limit">How long the answer may take, where that is not 5 s.</param>
    public UffdStatus? Ask(UffdControlRequest request, CancellationToken cancellation, TimeSpan? limit = null)
    {
        lock (_lock) return Exchange(request, cancellation, limit ?? AnswerTimeout)?.Handler;
    }

    /// <summary>Asks for something that comes as a file. Null where the handler has ended.</summary>
    /// <exception cref="GuestMemoryException">As above; ControlFailed also where the answer came without a file.</exception>
    public SafeDescriptor? AskForFile(UffdControlRequest request, CancellationToken cancellation, out UffdControlReply reply)
    {
        lock (_lock)
        {
            reply = new UffdControlReply();
            if (Exchange(request, cancellation, AnswerTimeout) is not { } answer) return null;
            reply = answer;
            return _lines.TakeDescriptor() ?? throw new GuestMemoryException(GuestMemoryError.ControlFailed, "The handler's process sent no file.");
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

    public void Dispose()
    {
        _socket.Dispose();
        _lines.TakeDescriptor()?.Dispose();
    }

    private UffdControlReply? Exchange(UffdControlRequest request, CancellationToken cancellation, TimeSpan limit)
    {
        if (IsOver) return null;
        _open++;
        _ = _lines.TrySend(request, UffdControlJson.Default.UffdControlRequest);
        var asked = Stopwatch.GetTimestamp();
        while (true)
        {
            if (TryRead(out var reply) && (reply.Ended || _open == 0))
            {
                if (reply.ErrorId is not null) throw reply.ToException();
                return reply.Ended ? null : reply;
            }

            if (IsOver) return null;
            cancellation.ThrowIfCancellationRequested();
            if (Stopwatch.GetElapsedTime(asked) > limit)
                throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The handler's process did not answer within {limit.TotalSeconds:0} s.");
            Poll(Slice);
        }
    }

    private bool TryRead(out UffdControlReply reply)
    {
        var came = _lines.TryTake(UffdControlJson.Default.UffdControlReply, out reply);
        if (came && reply.Ended) Ended = reply.Handler;
        else if (came) _open--;
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
