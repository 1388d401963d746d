using System.Buffers;
using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// One end of a connection that carries whole messages (crosvm's <c>base::Tube</c>): a packet of JSON each, with the descriptors that
/// it names. A tube can itself be sent through a tube. One thread may send while another receives.
/// </summary>
[JsonConverter(typeof(TubeConverter))]
public sealed class Tube : IDisposable
{
    /// <summary>The descriptors that a message carries unless more are allowed.</summary>
    public const int DefaultMaxDescriptors = 32;

    /// <summary>The most descriptors that one message can carry: the kernel's SCM_MAX_FD.</summary>
    public const int MaxDescriptors = 253;

    /// <summary>The largest packet that is sent and received, in bytes.</summary>
    public const int MaxPacketBytes = 1 << 20;

    private const int CancellationPause = 50;

    private TimeSpan? _sendTimeout;
    private TimeSpan? _receiveTimeout;

    /// <summary>Takes a connected SOCK_SEQPACKET socket over.</summary>
    public Tube(SafeDescriptor socket) => Socket = socket ?? throw new ArgumentNullException(nameof(socket));

    /// <summary>For a debugger and for logs: the descriptor of the socket.</summary>
    public override string ToString() => Socket.IsClosed ? "closed tube" : $"tube on descriptor {Socket.Number}{(IsOutOfStep ? ", out of step" : "")}";

    internal SafeDescriptor Socket { get; }

    /// <summary>Whether packets that belong to an earlier request, or its answer, may still come, so that none can be understood any more.</summary>
    internal bool IsOutOfStep { get; set; }

    /// <summary>Two tubes that are connected to each other.</summary>
    /// <exception cref="SyscallException">socketpair(2) failed.</exception>
    public static (Tube First, Tube Second) Pair()
    {
        var (first, second) = UnixSocket.CreatePair(nonBlocking: false);
        return (new Tube(first), new Tube(second));
    }

    /// <summary>Connects to the service that listens at a path.</summary>
    /// <param name="path">The path.</param>
    /// <param name="timeout">How long the other end may keep it waiting: to accept, to send and to receive; null for ever.</param>
    /// <param name="cancellation">Ends the wait to be accepted.</param>
    /// <exception cref="GuestMemoryException">SocketNotFound, NotASocket, ConnectionRefused, SocketPathTooLong; TubeTimeout: the service does not accept.</exception>
    /// <exception cref="SyscallException">EINVAL: the time is zero or negative. The kernel refused for another reason.</exception>
    /// <exception cref="OperationCanceledException">The wait was ended.</exception>
    public static Tube Connect(string path, TimeSpan? timeout = null, CancellationToken cancellation = default)
    {
        var tube = new Tube(UnixSocket.Create(nonBlocking: false, type: UnixSocket.SOCK_SEQPACKET));
        try
        {
            tube.SetSendTimeout(timeout);
            tube.SetReceiveTimeout(timeout);
            var error = (int)-tube.WhileBusy(() => -UnixSocket.TryConnect(tube.Socket, path), cancellation);
            return error == 0 ? tube : throw ConnectFailure(error, path);
        }
        catch
        {
            tube.Dispose();
            throw;
        }
    }

    /// <summary>A second tube over the same socket: both take from, and put into, the same queue.</summary>
    /// <exception cref="SyscallException">fcntl(2) failed.</exception>
    public Tube Clone()
    {
        using var duplicate = Descriptor.Duplicate(Socket);
        using var lease = new DescriptorLease(duplicate);
        var number = lease.Number;
        duplicate.SetHandleAsInvalid();
        return new Tube(new SafeDescriptor(number));
    }

    /// <summary>Limits how long sending may wait for the other end; null for ever.</summary>
    /// <exception cref="SyscallException">EINVAL: the time is zero (less than a microsecond) or negative.</exception>
    public void SetSendTimeout(TimeSpan? timeout)
    {
        SetTimeout(UnixSocket.SO_SNDTIMEO, timeout, "Limiting the time to send");
        _sendTimeout = timeout;
    }

    /// <summary>Limits how long receiving may wait for the other end; null for ever.</summary>
    /// <exception cref="SyscallException">EINVAL: the time is zero (less than a microsecond) or negative.</exception>
    public void SetReceiveTimeout(TimeSpan? timeout)
    {
        SetTimeout(UnixSocket.SO_RCVTIMEO, timeout, "Limiting the time to receive");
        _receiveTimeout = timeout;
    }

    /// <summary>Sends a value as one message.</summary>
    /// <param name="value">What is sent. Its descriptors go along as duplicates, and stay the caller's.</param>
    /// <param name="type">How it is written.</param>
    /// <param name="maxDescriptors">How many descriptors it may have, up to <see cref="MaxDescriptors"/>.</param>
    /// <param name="cancellation">Ends the wait for room.</param>
    /// <exception cref="GuestMemoryException">
    /// SendTooManyFds; PacketTooLarge: it is larger than <see cref="MaxPacketBytes"/>, or than the socket's buffer may become
    /// (net.core.wmem_max); BadJson: it cannot be written; nothing was sent. Disconnected; TubeTimeout.
    /// </exception>
    /// <exception cref="SyscallException">What sendmsg(2) says.</exception>
    /// <exception cref="OperationCanceledException">The wait was ended; nothing was sent.</exception>
    public void Send<T>(T value, JsonTypeInfo<T> type, int maxDescriptors = DefaultMaxDescriptors, CancellationToken cancellation = default) =>
        Send(value, type, maxDescriptors, wait: true, cancellation);

    /// <summary>Waits for a message and reads it.</summary>
    /// <param name="type">What is expected.</param>
    /// <param name="maxDescriptors">How many descriptors may come along, up to <see cref="MaxDescriptors"/>.</param>
    /// <param name="cancellation">Ends the wait.</param>
    /// <returns>The value. Its descriptors belong to the caller; any that it does not name were closed.</returns>
    /// <exception cref="GuestMemoryException">Disconnected; TubeTimeout; RecvTooManyFds, PacketTooLarge, BadJson: the message is lost, the tube stays usable.</exception>
    /// <exception cref="SyscallException">What recvmsg(2) says.</exception>
    /// <exception cref="OperationCanceledException">The wait was ended.</exception>
    public T Receive<T>(JsonTypeInfo<T> type, int maxDescriptors = DefaultMaxDescriptors, CancellationToken cancellation = default)
    {
        using var message = Receive(maxDescriptors, cancellation);
        return message.Take(type);
    }

    /// <summary>Closes this end.</summary>
    public void Dispose() => Socket.Dispose();

    internal void Send<T>(T value, JsonTypeInfo<T> type, int maxDescriptors, bool wait, CancellationToken cancellation = default)
    {
        if (maxDescriptors > MaxDescriptors) throw TooMany(GuestMemoryError.SendTooManyFds, maxDescriptors, MaxDescriptors);
        var descriptors = new List<SafeHandle>();
        var json = DescriptorJson.Serialize(value, type, descriptors);
        if (descriptors.Count > maxDescriptors) throw TooMany(GuestMemoryError.SendTooManyFds, descriptors.Count, maxDescriptors);
        if (json.Length > MaxPacketBytes)
            throw new GuestMemoryException(GuestMemoryError.PacketTooLarge, $"The message would have {json.Length} bytes; at most {MaxPacketBytes} are sent. Divide it, such as its ranges, among several.");
        var sent = wait ? WhileBusy(() => SendOrMakeRoom(json, descriptors, wait), cancellation) : SendOrMakeRoom(json, descriptors, wait);
        if (sent < 0) throw Failure("sendmsg", (int)-sent, $"Sending a message of {json.Length} bytes");
    }

    /// <summary>Waits for a message; its disposal closes every descriptor that was not taken.</summary>
    internal TubeMessage Receive(int maxDescriptors, CancellationToken cancellation, TimeSpan? limit = null)
    {
        if (maxDescriptors > MaxDescriptors) throw TooMany(GuestMemoryError.RecvTooManyFds, maxDescriptors, MaxDescriptors);
        if (cancellation.CanBeCanceled || limit is not null) WaitFor(limit ?? _receiveTimeout, cancellation);
        var length = UnixSocket.TryPeekLength(Socket);
        if (length < 0) throw Failure("recv", (int)-length, "Receiving a message");
        if (length == 0) throw new GuestMemoryException(GuestMemoryError.Disconnected, "The other end of the tube was closed.");
        var buffer = ArrayPool<byte>.Shared.Rent((int)Math.Min(length, MaxPacketBytes));
        var message = new TubeMessage(buffer);
        try
        {
            var received = UnixSocket.TryReceive(Socket, buffer, message.Descriptors, out var truncated, maxDescriptors, wait: true);
            if (received < 0) throw Failure("recvmsg", (int)-received, "Receiving a message");
            if (length > MaxPacketBytes) throw new GuestMemoryException(GuestMemoryError.PacketTooLarge, $"The message has {length} bytes; at most {MaxPacketBytes} are read.");
            if (truncated) throw new GuestMemoryException(GuestMemoryError.RecvTooManyFds, $"The message came with more than {maxDescriptors} descriptors, or more than this process may open.");
            message.Length = (int)received;
            return message;
        }
        catch
        {
            message.Dispose();
            throw;
        }
    }

    private nint SendOrMakeRoom(byte[] json, List<SafeHandle> descriptors, bool wait)
    {
        var sent = Send(json, descriptors, wait);
        if (sent != -Errno.EMSGSIZE) return sent;
        UnixSocket.MakeRoom(Socket, json.Length);
        return Send(json, descriptors, wait);
    }

    private nint Send(byte[] json, List<SafeHandle> descriptors, bool wait)
    {
        Span<int> numbers = stackalloc int[descriptors.Count];
        var leased = 0;
        try
        {
            for (; leased < numbers.Length; leased++)
            {
                var taken = false;
                descriptors[leased].DangerousAddRef(ref taken);
                numbers[leased] = (int)descriptors[leased].DangerousGetHandle();
            }

            return UnixSocket.TrySend(Socket, json, numbers, wait);
        }
        finally
        {
            while (leased > 0) descriptors[--leased].DangerousRelease();
        }
    }

    /// <summary>
    /// Does again what the other end has no room for, until the time to send is over. Where it can be cancelled, the kernel waits for
    /// a moment at a time.
    /// </summary>
    private nint WhileBusy(Func<nint> call, CancellationToken cancellation)
    {
        if (!cancellation.CanBeCanceled) return call();
        cancellation.ThrowIfCancellationRequested();
        var limit = _sendTimeout;
        var start = Stopwatch.GetTimestamp();
        _ = UnixSocket.TrySetTimeout(Socket, UnixSocket.SO_SNDTIMEO, TimeSpan.FromMilliseconds(Pause(limit)));
        try
        {
            nint result;
            while ((result = call()) == -Errno.EAGAIN && !(limit is { } time && Stopwatch.GetElapsedTime(start) > time)) cancellation.ThrowIfCancellationRequested();
            return result;
        }
        finally
        {
            _ = UnixSocket.TrySetTimeout(Socket, UnixSocket.SO_SNDTIMEO, limit ?? TimeSpan.Zero);
        }
    }

    private void WaitFor(TimeSpan? limit, CancellationToken cancellation)
    {
        using var lease = new DescriptorLease(Socket);
        Span<PollFd> descriptors = [new PollFd { fd = lease.Number, events = Poll.POLLIN | Poll.POLLRDHUP }];
        var start = Stopwatch.GetTimestamp();
        while (Poll.Wait(descriptors, Pause(limit)) == 0)
        {
            cancellation.ThrowIfCancellationRequested();
            if (limit is { } time && Stopwatch.GetElapsedTime(start) > time) throw Failure("recv", Errno.EAGAIN, "Receiving a message");
        }
    }

    private static int Pause(TimeSpan? limit) => limit is { } time && time.TotalMilliseconds < CancellationPause ? (int)Math.Ceiling(time.TotalMilliseconds) : CancellationPause;

    private void SetTimeout(int option, TimeSpan? timeout, string attempted)
    {
        var error = timeout is { } time && time < TimeSpan.FromMicroseconds(1) ? Errno.EINVAL : UnixSocket.TrySetTimeout(Socket, option, timeout ?? TimeSpan.Zero);
        if (error != 0) throw new SyscallException("setsockopt", error, attempted);
    }

    private static GuestMemoryException TooMany(GuestMemoryError kind, int count, int limit) =>
        new(kind, $"{count} descriptors are more than a message may carry here: {limit}.");

    private static GuestMemoryException Failure(string function, int error, string attempted) => error switch
    {
        Errno.EPIPE or Errno.ECONNRESET => new GuestMemoryException(GuestMemoryError.Disconnected, "The other end of the tube was closed."),
        Errno.EMSGSIZE => new SyscallException(function, error, attempted, GuestMemoryError.PacketTooLarge, "It does not fit the socket's buffer. Raise its limit ('sysctl -w net.core.wmem_max=1048576'), or divide the message, such as its ranges, among several."),
        Errno.EAGAIN => new SyscallException(function, error, attempted, GuestMemoryError.TubeTimeout, "The other end took too long."),
        _ => new SyscallException(function, error, attempted),
    };

    private static GuestMemoryException ConnectFailure(int error, string path) => error switch
    {
        Errno.ENOENT or Errno.ENOTDIR => new GuestMemoryException(GuestMemoryError.SocketNotFound, $"There is no socket at {path}. Start the service first, or correct the path."),
        Errno.ECONNREFUSED when FileStatus.TryGet(path, out var status, follow: true) == 0 && (status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFSOCK =>
            new GuestMemoryException(GuestMemoryError.NotASocket, $"What is at {path} is not a socket."),
        Errno.EAGAIN => new GuestMemoryException(GuestMemoryError.TubeTimeout, $"The service at {path} did not accept the connection in time."),
        Errno.ECONNREFUSED => new GuestMemoryException(GuestMemoryError.ConnectionRefused, $"No service listens at {path}; its socket file was left behind. Start the service again."),
        _ => new SyscallException("connect", error, $"Connecting to {path}"),
    };
}
