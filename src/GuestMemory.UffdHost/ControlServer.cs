using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>The control socket: this user and root may ask for the handler's figures, stop it, and hear its last words.</summary>
internal sealed class ControlServer : IWatched, IDisposable
{
    private const int MaxClients = 256;

    private readonly Epoll _epoll;
    private readonly Func<UffdStatus> _status;
    private readonly Func<SafeDescriptor> _dirty;
    private readonly Action _stop;
    private readonly SafeDescriptor _socket;
    private readonly List<Client> _clients = [];

    private ControlServer(Epoll epoll, string path, SafeDescriptor socket, Func<UffdStatus> status, Func<SafeDescriptor> dirty, Action stop)
    {
        _epoll = epoll;
        _status = status;
        _dirty = dirty;
        _stop = stop;
        _socket = socket;
        Path = path;
    }

    public string Path { get; }

    public static ControlServer Open(Epoll epoll, string path, Func<UffdStatus> status, Func<SafeDescriptor> dirty, Action stop)
    {
        var socket = UnixSocket.Create(nonBlocking: true, mode: 0b110_000_000);
        // It gets its name when it listens: a name that refuses connections is one that a dead process has left behind.
        var unnamed = path + ".new";
        try
        {
            File.Delete(unnamed);
            var error = UnixSocket.TryBind(socket, unnamed);
            if (error == 0) error = UnixSocket.TryListen(socket, 64);
            if (error != 0) throw new SyscallException("bind", error, $"Making the control socket {path}");
            File.Move(unnamed, path, overwrite: true);
            var server = new ControlServer(epoll, path, socket, status, dirty, stop);
            epoll.Add(socket, server);
            return server;
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    public void Ready()
    {
        while (UnixSocket.TryAccept(_socket, out _) is { } socket)
        {
            if (_clients.Count >= MaxClients || UnixSocket.PeerCredentials(socket) is var peer && peer.uid != 0 && peer.uid != Users.Current)
            {
                socket.Dispose();
                continue;
            }

            var client = new Client(this, socket);
            _clients.Add(client);
            _epoll.Add(socket, client);
        }
    }

    /// <summary>Tells everybody the last figures, and hangs up.</summary>
    public void End(UffdStatus last)
    {
        foreach (var client in _clients.ToArray())
        {
            client.Send(new UffdControlReply { Handler = last, Ended = true });
            Close(client);
        }
    }

    public void Dispose()
    {
        foreach (var client in _clients.ToArray()) Close(client);
        _epoll.Remove(_socket);
        _socket.Dispose();
        File.Delete(Path);
    }

    private void Answer(Client client, UffdControlRequest request)
    {
        switch (request.Request)
        {
            case UffdControlRequest.Status:
                client.Send(new UffdControlReply { Handler = _status() });
                break;
            case UffdControlRequest.Dirty:
                SendDirty(client);
                break;
            case UffdControlRequest.Stop:
                // The answer are the last words.
                _stop();
                break;
            case UffdControlRequest.Wait:
                break;
            default:
                client.Send(new UffdControlReply { ErrorId = nameof(GuestMemoryError.ControlFailed), Message = "The handler knows the requests status, dirty, stop and wait." });
                break;
        }
    }

    private void SendDirty(Client client)
    {
        try
        {
            using var file = _dirty();
            client.Send(new UffdControlReply(), file);
        }
        catch (GuestMemoryException exception)
        {
            client.Send(new UffdControlReply { ErrorId = exception.Error.ToString(), Message = exception.Message });
        }
    }

    private void Close(Client client)
    {
        if (!_clients.Remove(client)) return;
        _epoll.Remove(client.Socket);
        client.Socket.Dispose();
    }

    private sealed class Client(ControlServer server, SafeDescriptor socket) : IWatched
    {
        private readonly JsonLines _lines = new(socket);

        public SafeDescriptor Socket => socket;

        public void Send(UffdControlReply reply, SafeDescriptor? file = null)
        {
            if (!_lines.TrySend(reply, UffdControlJson.Default.UffdControlReply, file)) server.Close(this);
        }

        public void Ready()
        {
            try
            {
                while (!socket.IsClosed && _lines.TryTake(UffdControlJson.Default.UffdControlRequest, out var request)) server.Answer(this, request);
                if (!socket.IsClosed && _lines.IsEnded) server.Close(this);
            }
            catch (GuestMemoryException exception)
            {
                Send(new UffdControlReply { ErrorId = exception.Error.ToString(), Message = exception.Message });
                if (!socket.IsClosed) server.Close(this);
            }
        }
    }
}
