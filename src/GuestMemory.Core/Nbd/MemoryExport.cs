using System.Globalization;
using System.Net;
using System.Net.Sockets;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Nbd;

/// <summary>
/// Memory served read-only as a network block device (NBD), to any number of clients, each by a thread of its own. The memory stays its owner's: what cannot be read, since a region was removed or a process has
/// ended, is an I/O error to the client. Memory of a process that was attached to be paused stands still while a client is connected. Disposal ends all connections.
/// </summary>
public sealed class MemoryExport : IDisposable
{
    /// <summary>More clients are turned away.</summary>
    public const int MaxConnections = 64;

    // How often it is looked whether clients are still there.
    private const int LookMilliseconds = 1000;

    private readonly ExportSpace _space;
    private readonly TimeSpan _negotiation;
    private readonly UnixListener? _listener;
    private readonly Socket? _port;
    private readonly AllowedPeers _allowed;
    private readonly SafeDescriptor _stop = EventFd.Create();
    private readonly CancellationTokenSource _ended = new();
    private readonly Thread _accepting;
    private readonly Lock _lock = new();
    private readonly Dictionary<Socket, (Thread Thread, CancellationTokenSource Left)> _clients = [];
    private long _connections, _sent;
    private volatile string? _error;
    private bool _stopping;

    private MemoryExport(MemoryExportOptions options, ExportSpace space, AllowedPeers allowed, UnixListener? listener, Socket? port)
    {
        (_space, _allowed, _listener, _port) = (space, allowed, listener, port);
        Name = options.Name;
        IsPacked = options.IsPacked;
        _negotiation = options.NegotiationLimit;
        Port = (port?.LocalEndPoint as IPEndPoint)?.Port;
        _accepting = new Thread(Accept) { IsBackground = true, Name = "nbd-accept" };
    }

    /// <summary>The name; clients may leave it out.</summary>
    public string Name { get; }

    /// <summary>The socket where it listens; null on a port.</summary>
    public string? SocketPath => _listener?.Path;

    /// <summary>The port of 127.0.0.1 where it listens; null at a socket.</summary>
    public int? Port { get; }

    /// <summary>What a client is given to connect: "nbd+unix:///?socket=/run/vm.sock".</summary>
    public string Uri => SocketPath is { } path ? $"nbd+unix:///?socket={string.Join('/', path.Split('/').Select(System.Uri.EscapeDataString))}" : $"nbd://127.0.0.1:{Port}/";

    /// <summary>The length of the device in bytes, with holes.</summary>
    public ulong Size => _space.Size;

    /// <summary>The length of the memory in bytes.</summary>
    public ulong MemorySize => _space.Memory.Size;

    /// <summary>Whether the regions lie one behind the other.</summary>
    public bool IsPacked { get; }

    /// <summary>The state.</summary>
    public MemoryExportState State => Volatile.Read(ref _stopping) ? MemoryExportState.Stopped : MemoryExportState.Listening;

    /// <summary>How many clients are connected.</summary>
    public int ConnectionCount
    {
        get
        {
            lock (_lock) return _clients.Count;
        }
    }

    /// <summary>How many clients have connected.</summary>
    public long TotalConnectionCount => Interlocked.Read(ref _connections);

    /// <summary>How many bytes of memory were sent.</summary>
    public long ByteCount => Interlocked.Read(ref _sent);

    /// <summary>The last error: of the memory, of a client, or who was turned away; null where there was none.</summary>
    public string? Error => _error;

    /// <summary>The memory.</summary>
    public GuestMemoryMmap GetMemory() => _space.Memory;

    /// <summary>Begins to listen.</summary>
    /// <param name="memory">The memory; the caller keeps it as long as the export lives.</param>
    /// <param name="options">How.</param>
    /// <exception cref="GuestMemoryException">
    /// NoMemoryRegion; ValueNotSupported: the name is too long, the addresses pass 2^63 - 1; SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound; PortInUse.
    /// </exception>
    public static MemoryExport Start(GuestMemoryMmap memory, MemoryExportOptions options)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(options);
        if (System.Text.Encoding.UTF8.GetByteCount(options.Name) > NbdProtocol.MaxName) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The name of an export has at most {NbdProtocol.MaxName} bytes.");
        var space = new ExportSpace(memory, options.IsPacked);
        var allowed = AllowedPeers.Find(options.AllowUser, []);
        var listener = options.SocketPath is { } path ? UnixListener.Open(path, allowed, options.Force) : null;
        var export = new MemoryExport(options, space, allowed, listener, listener is null ? Listen(options.Port) : null);
        export._accepting.Start();
        return export;
    }

    /// <summary>Ends all connections and listens no more.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (_stopping) return;
            _stopping = true;
        }

        EventFd.Signal(_stop);
        _accepting.Join();
        _ended.Cancel();
        Thread[] threads;
        lock (_lock)
        {
            threads = [.. _clients.Values.Select(static client => client.Thread)];
            foreach (var socket in _clients.Keys) Shutdown(socket);
        }

        foreach (var thread in threads) thread.Join();
        _listener?.Dispose();
        _port?.Dispose();
        _stop.Dispose();
        _ended.Dispose();
    }

    /// <summary>What is served where, for debuggers and messages.</summary>
    public override string ToString() => $"{Name} at {SocketPath ?? $"127.0.0.1:{Port}"}, {_space.Memory}";

    private static Socket Listen(int port)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            socket.Bind(new IPEndPoint(IPAddress.Loopback, port));
            socket.Listen(128);
            return socket;
        }
        catch (SocketException exception)
        {
            socket.Dispose();
            throw new GuestMemoryException(GuestMemoryError.PortInUse, $"Memory cannot be exported at port {port} of 127.0.0.1: {exception.Message}. Give another port.", exception);
        }
    }

    private static void Shutdown(Socket socket)
    {
        try
        {
            socket.Shutdown(SocketShutdown.Both);
        }
        catch (Exception exception) when (exception is SocketException or ObjectDisposedException)
        {
            // The client has gone.
        }
    }

    /// <summary>The user of the process at the other end of a connection on this host; null where the kernel does not say.</summary>
    /// <param name="lines">The lines of <c>/proc/net/tcp</c>.</param>
    /// <param name="near">The end of this process.</param>
    /// <param name="far">The end of the client.</param>
    internal static uint? UserOf(IEnumerable<string> lines, IPEndPoint near, IPEndPoint far)
    {
        // "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode". Of a connection that is over (TIME_WAIT) the kernel says user 0 and inode 0: only an
        // established one (01) that a process has is the client's.
        var (local, remote) = (Hex(far), Hex(near));
        return lines.Select(static line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Where(fields => fields.Length > 9 && fields[1] == local && fields[2] == remote && fields[3] == "01" && fields[9] != "0")
            .Select(static fields => uint.TryParse(fields[7], CultureInfo.InvariantCulture, out var user) ? (uint?)user : null).FirstOrDefault();

        // "0100007F:PORT", in hexadecimal.
        static string Hex(IPEndPoint end) => $"{BitConverter.ToUInt32(end.Address.GetAddressBytes()):X8}:{end.Port:X4}";
    }

    private static uint? UserOf(Socket client) => client is { LocalEndPoint: IPEndPoint near, RemoteEndPoint: IPEndPoint far } ? UserOf(File.ReadLines("/proc/net/tcp"), near, far) : null;

    private static bool HasLeft(Socket client)
    {
        using var lease = new DescriptorLease(client.SafeHandle);
        // The end of the connection (POLLHUP) is told unasked.
        Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLRDHUP }];
        return Poll.Wait(entry, 0) > 0;
    }

    private void Accept()
    {
        Span<PollFd> entries = stackalloc PollFd[2];
        using var listening = new DescriptorLease(_listener is null ? _port!.SafeHandle : _listener.Socket);
        using var stopping = new DescriptorLease(_stop);
        while (true)
        {
            entries[0] = new PollFd { fd = listening.Number, events = Poll.POLLIN };
            entries[1] = new PollFd { fd = stopping.Number, events = Poll.POLLIN };
            try
            {
                _ = Poll.Wait(entries, ConnectionCount > 0 ? LookMilliseconds : -1);
                if (entries[1].revents != 0) return;
                CancelLeft();
                if (entries[0].revents != 0 && AcceptOne() is { } socket) Admit(socket);
            }
#pragma warning disable CA1031 // Whatever one client does, others can connect.
            catch (Exception exception)
            {
                _error = exception.Message;
                // Without descriptors trying again at once would only burn the processor.
                Thread.Sleep(100);
            }
#pragma warning restore CA1031
        }
    }

    /// <summary>Ends the reads of clients that are no longer there: one that waits for a page does not see it.</summary>
    private void CancelLeft()
    {
        lock (_lock)
        {
            foreach (var (socket, (_, left)) in _clients)
            {
                if (HasLeft(socket)) left.Cancel();
            }
        }
    }

    private Socket? AcceptOne()
    {
        if (_listener is null) return _port!.Accept();
        if (UnixSocket.TryAccept(_listener.Socket, out var error, nonBlocking: false) is not { } accepted)
            return error is Errno.EAGAIN or Errno.ECONNABORTED ? null : throw new SyscallException("accept", error, $"Accepting a client at {SocketPath}");
        // The socket closes the number; the descriptor must not.
        using (accepted)
        {
            var peer = UnixSocket.PeerCredentials(accepted);
            if (!_listener.Allows(peer, accepted))
            {
                _error = $"Process {peer.pid} of user {peer.uid} was refused: only root, the export's own user and the users that were allowed may connect.";
                return null;
            }

            var handle = new SafeSocketHandle(accepted.Number, ownsHandle: true);
            accepted.SetHandleAsInvalid();
            try
            {
                return new Socket(handle);
            }
            catch
            {
                handle.Dispose();
                throw;
            }
        }
    }

    private void Admit(Socket socket)
    {
        try
        {
            if (TryBegin(socket) is not { } refusal) return;
            if (refusal.Length > 0) _error = refusal;
        }
        catch
        {
            socket.Dispose();
            throw;
        }

        socket.Dispose();
    }

    /// <summary>Begins to serve a client; else the reason, which is empty where the export ends.</summary>
    private string? TryBegin(Socket socket)
    {
        string? refusal = null;
        if (_port is not null)
        {
            socket.NoDelay = true;
            if (UserOf(socket) is not { } user) refusal = $"The client at {socket.RemoteEndPoint} was refused: its user is not known.";
            else if (!_allowed.Allows(user)) refusal = $"A client of user {user} was refused: only root, the export's own user and the users that were allowed may connect.";
        }

        lock (_lock)
        {
            if (refusal is null && _clients.Count >= MaxConnections) refusal = $"A client was refused: {MaxConnections} are connected already.";
            if (refusal is not null || _stopping) return refusal ?? "";
            var left = CancellationTokenSource.CreateLinkedTokenSource(_ended.Token);
            var thread = new Thread(() => Serve(socket, left)) { IsBackground = true, Name = "nbd-client" };
            _clients.Add(socket, (thread, left));
            try
            {
                thread.Start();
            }
            catch
            {
                _clients.Remove(socket);
                left.Dispose();
                throw;
            }

            _connections++;
            return null;
        }
    }

    private void Serve(Socket socket, CancellationTokenSource left)
    {
        var isLate = false;
        try
        {
            // One limit for the whole negotiation, whatever the client sends or takes meanwhile.
            using var limit = new Timer(_ =>
            {
                Volatile.Write(ref isLate, true);
                Shutdown(socket);
            }, null, _negotiation, Timeout.InfiniteTimeSpan);
            using var stream = new NetworkStream(socket, ownsSocket: false);
            var session = new NbdSession(stream, Name, _space, left.Token) { Began = _space.Memory.Hold, Failed = error => _error = error, Sent = count => Interlocked.Add(ref _sent, count) };
            session.Run(() => limit.Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan));
        }
        catch (EndOfStreamException)
        {
            // The client has gone.
        }
#pragma warning disable CA1031 // Whatever a client does ends its connection and no other.
        catch (Exception exception)
        {
            // A client that is gone is none, nor is the end of the export; one that contradicts the protocol is.
            if (State == MemoryExportState.Listening && !left.IsCancellationRequested && exception is not IOException { InnerException: SocketException { SocketErrorCode: SocketError.ConnectionReset or SocketError.Shutdown } }) _error = exception.Message;
        }
#pragma warning restore CA1031
        finally
        {
            if (Volatile.Read(ref isLate) && State == MemoryExportState.Listening) _error = $"A client did not end its negotiation within {_negotiation.TotalSeconds:0.#} s.";
            lock (_lock) _clients.Remove(socket);
            socket.Dispose();
            left.Dispose();
        }
    }
}
