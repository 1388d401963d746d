using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// A vhost-user back end that listens at a socket: it serves one front end after the other, each on a thread of its own. A second one that comes
/// meanwhile is turned away, since two guests that write to one disk destroy its file system. Dispose of it before its device.
/// </summary>
public sealed class VhostUserBackend : IDisposable
{
    private readonly UnixListener _listener;
    private readonly IVhostUserDevice _device;
    private readonly bool _trusted;
    private readonly SafeDescriptor _stop = EventFd.Create();
    private readonly Thread _accepting;
    private readonly Lock _lock = new();

    // Under the lock. The socket is the connection's, and open as long as that stands here.
    private VhostUserConnection? _connection;
    private SafeDescriptor? _socket;
    private Thread? _serving;
    private int? _frontEnd;
    private int _connectionCount;
    private string? _error;
    private bool _stopping;

    private VhostUserBackend(UnixListener listener, IVhostUserDevice device, bool trusted)
    {
        (_listener, _device, _trusted) = (listener, device, trusted);
        _accepting = new Thread(Accept) { IsBackground = true, Name = "vhost-accept" };
    }

    /// <summary>Where it listens.</summary>
    public string SocketPath => _listener.Path;

    /// <summary>The process that is connected; null where none is.</summary>
    public int? FrontEndProcessId
    {
        get
        {
            lock (_lock) return _frontEnd;
        }
    }

    /// <summary>How many front ends have connected; those that were refused do not count.</summary>
    public int ConnectionCount
    {
        get
        {
            lock (_lock) return _connectionCount;
        }
    }

    /// <summary>What ended the last connection that ended by an error, or why a front end was refused, whichever came last; null where nothing did.</summary>
    public string? Error
    {
        get
        {
            lock (_lock) return _error;
        }
    }

    /// <summary>The memory of the VM that is connected; nothing where none is. The connection releases its regions when the front end takes them away or ends.</summary>
    public GuestMemoryMmap Memory
    {
        get
        {
            lock (_lock) return _connection?.Memory ?? GuestMemoryMmap.Empty;
        }
    }

    /// <summary>
    /// Whether writes to that memory are marked in the dirty log of the front end, which then migrates the VM. QEMU leaves it on after a migration
    /// that has completed (postmigrate), and turns it off when the VM goes on.
    /// </summary>
    public bool IsLogging
    {
        get
        {
            lock (_lock) return _connection?.IsLogging ?? false;
        }
    }

    /// <summary>Whether the VM arrives by a post-copy migration: it runs here, and an access to its memory may wait for a page of the source.</summary>
    public bool IsPostcopy
    {
        get
        {
            lock (_lock) return _connection?.IsPostcopy ?? false;
        }
    }

    /// <summary>Listens at a socket.</summary>
    /// <param name="path">Where.</param>
    /// <param name="device">What front ends get; it stays the caller's.</param>
    /// <param name="allowUser">The users whose front ends may connect beside root and the own one: names or numbers.</param>
    /// <param name="trusted">See <see cref="VhostUserConnection"/>.</param>
    /// <param name="force">See <see cref="VhostUserDiskOptions.Force"/>.</param>
    /// <exception cref="GuestMemoryException">SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static VhostUserBackend Start(string path, IVhostUserDevice device, IEnumerable<string> allowUser, bool trusted = false, bool force = false)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentNullException.ThrowIfNull(allowUser);
        var listener = UnixListener.Open(path, AllowedPeers.Find(allowUser, []), force);
        try
        {
            var backend = new VhostUserBackend(listener, device, trusted);
            backend._accepting.Start();
            return backend;
        }
        catch
        {
            listener.Dispose();
            throw;
        }
    }

    /// <summary>Ends the connection and listens no more; returns when the requests that are under way have ended.</summary>
    public void Dispose()
    {
        Thread? serving;
        lock (_lock)
        {
            if (_stopping) return;
            _stopping = true;
            _connection?.Stop();
            serving = _serving;
        }

        EventFd.Signal(_stop);
        _accepting.Join();
        serving?.Join();
        _listener.Dispose();
        _stop.Dispose();
    }

    private void Accept()
    {
        Span<PollFd> entries = stackalloc PollFd[2];
        using var listening = new DescriptorLease(_listener.Socket);
        using var stopping = new DescriptorLease(_stop);
        while (true)
        {
            entries[0] = new PollFd { fd = listening.Number, events = Poll.POLLIN };
            entries[1] = new PollFd { fd = stopping.Number, events = Poll.POLLIN };
            try
            {
                _ = Poll.Wait(entries, -1);
                if (entries[1].revents != 0) return;
                if (UnixSocket.TryAccept(_listener.Socket, out var error, nonBlocking: false) is { } socket) Admit(socket);
                // Without descriptors trying again at once would only burn the processor.
                else if (error is Errno.EMFILE or Errno.ENFILE) Thread.Sleep(100);
            }
            catch (GuestMemoryException exception)
            {
                lock (_lock) _error = exception.Message;
            }
        }
    }

    private void Admit(SafeDescriptor socket)
    {
        try
        {
            var peer = UnixSocket.PeerCredentials(socket);
            if (!_listener.Allows(peer, socket))
            {
                Refuse(peer, socket, "only root, the back end's own user and the users that were allowed may connect");
                return;
            }

            // A front end that starts again need not wait for the requests of the one before it, which has gone.
            FormerFrontEnd()?.Join();
            lock (_lock)
            {
                if (_stopping) Refuse(peer, socket, "the back end ends");
                else if (_connection is not null) Refuse(peer, socket, $"process {_frontEnd} is connected");
                else Serve(peer, socket);
            }
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    private void Refuse(UCred peer, SafeDescriptor socket, string why)
    {
        lock (_lock) _error = $"Process {peer.pid} of user {peer.uid} was refused: {why}.";
        socket.Dispose();
    }

    /// <summary>The thread of a connection whose front end has closed it; null where one is connected, or there is none.</summary>
    private Thread? FormerFrontEnd()
    {
        lock (_lock) return _socket is null || UnixSocket.HasPeerEnded(_socket) ? _serving : null;
    }

    private void Serve(UCred peer, SafeDescriptor socket)
    {
        var connection = new VhostUserConnection(socket, _device, _trusted);
        var serving = new Thread(() => Serve(connection)) { IsBackground = true, Name = "vhost-user" };
        serving.Start();
        (_connection, _socket, _serving, _frontEnd) = (connection, socket, serving, peer.pid);
        _connectionCount++;
    }

    private void Serve(VhostUserConnection connection)
    {
        string? why = null;
        try
        {
            connection.Run();
        }
#pragma warning disable CA1031 // Whatever a front end sends ends its connection and no other.
        catch (Exception exception)
        {
            why = exception.Message;
        }
#pragma warning restore CA1031

        lock (_lock)
        {
            (_connection, _socket, _frontEnd) = (null, null, null);
            if (why is not null) _error = why;
        }

        connection.Dispose();
    }
}
