using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>Where VMs come in: the listening socket, the connections, and the hand-overs that come over them.</summary>
internal sealed class Reception : IWatched, IDisposable
{
    /// <summary>The name under which a service manager keeps the listening socket that was made here.</summary>
    public const string StoredListener = "listener";

    private const int AcceptPause = 100;

    private readonly UnixListener _listener;
    private readonly UffdHandlerOptions _options;
    private readonly Epoll _epoll;
    private readonly KeptVms _vms;
    private readonly Func<ulong> _imageLength;
    private readonly Action<KeptVm> _came;
    private readonly Action<string> _failed;
    private readonly List<KeptConnection> _connections = [];
    private long _pausedUntil;

    private Reception(UnixListener listener, UffdHandlerOptions options, Epoll epoll, KeptVms vms, Func<ulong> imageLength, Action<KeptVm> came, Action<string> failed)
    {
        _listener = listener;
        _options = options;
        _epoll = epoll;
        _vms = vms;
        _imageLength = imageLength;
        _came = came;
        _failed = failed;
    }

    public string Path => _listener.Path;

    /// <summary>Takes over what came with this process, a listening socket and VMs, or listens afresh.</summary>
    public static Reception Open(UffdHandlerOptions options, Systemd systemd, Epoll epoll, KeptVms vms, Func<ulong> imageLength, Action<KeptVm> came, Action<string> failed)
    {
        var restored = vms.Restore();
        var listener = Inherited(options, systemd) ?? UnixListener.Open(options.SocketPath, options.AllowUser, options.Force);
        var reception = new Reception(listener, options, epoll, vms, imageLength, came, failed);
        epoll.Add(listener.Socket, reception);
        if (systemd.IsThere && listener.IsOurs) systemd.Store(StoredListener, listener.Socket);
        foreach (var vm in restored) reception.Keep(vm);
        return reception;
    }

    public void Ready()
    {
        while (_pausedUntil == 0)
        {
            var socket = UnixSocket.TryAccept(_listener.Socket, out var error);
            if (socket is null)
            {
                if (error == Errno.EAGAIN) return;
                if (error is Errno.ECONNABORTED or Errno.EINTR) continue;
                // The connection stays in the queue; trying again at once would only burn the processor.
                _failed(new SyscallException("accept4", error, "Accepting a connection",
                    remedy: error == Errno.EMFILE ? "Raise the limit of open files (LimitNOFILE=, 'ulimit -n')." : null).Message);
                _epoll.Remove(_listener.Socket);
                _pausedUntil = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * AcceptPause);
                return;
            }

            var peer = UnixSocket.PeerCredentials(socket);
            if (_connections.Count >= _options.MaxConnections)
            {
                _failed($"Process {peer.pid} of user {peer.uid} was turned away: {_connections.Count} VMMs are connected, and no more may be.");
                socket.Dispose();
            }
            else if (_listener.Allows(peer)) Add(new KeptConnection(new UffdConnection(socket, peer, null, _options.HandoverTimeout), Receive));
            else
            {
                _failed($"Process {peer.pid} of user {peer.uid} is not allowed to connect; give -AllowUser {peer.uid} if it should be.");
                socket.Dispose();
            }
        }
    }

    /// <summary>Milliseconds until something is due; -1 where nothing is.</summary>
    public int Timeout()
    {
        var timeout = _pausedUntil == 0 ? -1 : AcceptPause;
        foreach (var connection in _connections)
        {
            if (connection.Connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
        }

        return timeout;
    }

    public void LookAtTheClock()
    {
        foreach (var connection in _connections.FindAll(static connection => connection.Connection.IsOverdue)) Receive(connection);
        if (_pausedUntil == 0 || _listener.Socket.IsClosed || Stopwatch.GetTimestamp() < _pausedUntil) return;
        _pausedUntil = 0;
        _epoll.Add(_listener.Socket, this);
    }

    /// <summary>Closes the connection of a VM, and what else came over it.</summary>
    public void Close(KeptVm vm)
    {
        if (_connections.Find(connection => connection.Vms.Contains(vm)) is { } connection) Close(connection);
    }

    public void Dispose()
    {
        if (_listener.Socket.IsClosed) return;
        _epoll.Remove(_listener.Socket);
        _listener.Dispose();
    }

    private void Add(KeptConnection connection)
    {
        _connections.Add(connection);
        _epoll.Add(connection.Socket, connection);
    }

    /// <summary>Goes on with a VM that an earlier process had.</summary>
    private void Keep(KeptVm vm)
    {
        var peer = new UCred { pid = vm.List.ProcessId, uid = vm.List.User, gid = vm.List.Group };
        var connection = new KeptConnection(new UffdConnection(vm.Socket, peer, null, _options.HandoverTimeout, isAwaited: false), Receive);
        connection.Vms.Add(vm);
        Add(connection);
        _vms.Add(vm);
    }

    private void Receive(KeptConnection connection)
    {
        try
        {
            // What was read may hold more than one.
            while (connection.Connection.TryReceive(out var handover)) Keep(connection, handover);
        }
        catch (GuestMemoryException exception)
        {
            _failed($"Process {connection.Connection.Peer.pid} of user {connection.Connection.Peer.uid}: {exception.Message}");
            connection.Connection.IsEnded = true;
        }

        if (connection.Connection.IsEnded) Close(connection);
    }

    private void Keep(KeptConnection connection, UffdHandover handover)
    {
        KeptVm vm;
        try
        {
            UffdMappingList.Validate(handover.Mappings, _imageLength());
            vm = KeptVm.Create(_vms.NextId(), connection.Socket, connection.Connection.Peer, handover);
        }
        catch
        {
            handover.Userfaultfd.Dispose();
            throw;
        }

        connection.Vms.Add(vm);
        _vms.Add(vm);
        _came(vm);
    }

    private void Close(KeptConnection connection)
    {
        if (!_connections.Remove(connection)) return;
        foreach (var vm in connection.Vms) _vms.Remove(vm);
        _epoll.Remove(connection.Socket);
        connection.Dispose();
    }

    private static UnixListener? Inherited(UffdHandlerOptions options, Systemd systemd)
    {
        foreach (var item in systemd.Descriptors.ToArray())
        {
            if (UnixSocket.ListeningPath(item.Descriptor) is not { } path) continue;
            systemd.Descriptors.Remove(item);
            return UnixListener.Adopt(item.Descriptor, path, options.AllowUser, isOurs: item.Name == StoredListener);
        }

        return null;
    }
}
