using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>The control socket: this user and root may ask for the handler's figures, stop it, and hear its last words.</summary>
internal sealed partial class ControlServer : IWatched, IDisposable
{
    private const int MaxClients = 256;
    private const int AcceptPause = 100;

    private readonly Epoll _epoll;
    private readonly Actions _actions;
    private readonly SafeDescriptor _socket;
    private readonly List<Client> _clients = [];
    private long _pausedUntil;

    private ControlServer(Epoll epoll, string path, SafeDescriptor socket, Actions actions)
    {
        _epoll = epoll;
        _actions = actions;
        _socket = socket;
        Path = path;
    }

    /// <summary>Where it is; removed with it.</summary>
    public string Path { get; set; }

    /// <summary>Whether somebody waits for an answer that could not be given yet, or to come in.</summary>
    public bool IsWaiting => _pausedUntil != 0 || _clients.Exists(static client => client.Waiting is not null);

    public static ControlServer Open(Epoll epoll, string path, Actions actions)
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
            var server = new ControlServer(epoll, path, socket, actions);
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
        while (true)
        {
            if (UnixSocket.TryAccept(_socket, out var error) is not { } socket)
            {
                if (error is not (Errno.EAGAIN or Errno.ECONNABORTED or Errno.EINTR)) Pause();
                return;
            }


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

    /// <summary>Tries again what could not be answered.</summary>
    public void LookAgain()
    {
        if (_pausedUntil != 0 && Stopwatch.GetTimestamp() >= _pausedUntil)
        {
            _pausedUntil = 0;
            _epoll.Add(_socket, this);
        }

        foreach (var client in _clients.FindAll(static client => client.Waiting is not null)) TryAnswer(client, client.Waiting!);
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
        if (_pausedUntil == 0) _epoll.Remove(_socket);
        _socket.Dispose();
        UffdRuntimeFolder.Remove(Path);
    }

    /// <summary>No descriptor is left; who wants to come in stays in the queue.</summary>
    private void Pause()
    {
        _epoll.Remove(_socket);
        _pausedUntil = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * AcceptPause);
    }

    private void Answer(Client client, UffdControlRequest request)
    {
        // Answers come in the order of the requests; who asks for something else has given up.
        if (client.Waiting is not null) SendError(client, new GuestMemoryException(GuestMemoryError.ControlFailed, "Another request of this client was not answered yet, and this one does not wait for it."));
        if (client.Socket.IsClosed) return;
        switch (request.Request)
        {
            case UffdControlRequest.Status:
                client.Send(new UffdControlReply { Handler = _actions.Status() });
                break;
            case UffdControlRequest.Figures:
                SendFigures(client);
                break;
            case UffdControlRequest.Dirty or UffdControlRequest.AddImage:
                TryAnswer(client, request);
                break;
            case UffdControlRequest.Cleared:
                _actions.Cleared(request.Number);
                client.Send(new UffdControlReply());
                break;
            case UffdControlRequest.SetVm or UffdControlRequest.StopVm or UffdControlRequest.Part or UffdControlRequest.RemoveImage or UffdControlRequest.Live:
                AnswerOfVm(client, request);
                break;
            case UffdControlRequest.Stop:
                // The answer are the last words.
                _actions.Stop();
                break;
            case UffdControlRequest.Upgrade:
                Upgrade(client, request);
                break;
            case UffdControlRequest.Wait:
                break;
            default:
                client.Send(new UffdControlReply { ErrorId = nameof(GuestMemoryError.ControlFailed), Message = "The handler knows the requests status, figures, dirty, cleared, set-vm, stop-vm, part, add-image, remove-image, live, upgrade, stop and wait." });
                break;
        }
    }

    private void AnswerOfVm(Client client, UffdControlRequest request)
    {
        try
        {
            var (reply, part) = _actions.OfVm(request);
            using var file = part;
            client.Send(reply, part);
        }
        catch (GuestMemoryException exception)
        {
            SendError(client, exception);
        }
    }

    private void SendFigures(Client client)
    {
        using var file = _actions.Figures();
        client.Send(new UffdControlReply(), file);
    }

    /// <summary>Answers what may have to wait: for a removal of a VM, or until an image is open.</summary>
    private void TryAnswer(Client client, UffdControlRequest request)
    {
        try
        {
            client.Waiting = request;
            if (request.Request == UffdControlRequest.AddImage)
            {
                if (!_actions.AddImage(request)) return;
                client.Waiting = null;
                client.Send(new UffdControlReply());
                return;
            }

            if (_actions.Dirty(request.Vm, request.Clear) is not { } dirty) return;
            using var file = dirty.File;
            client.Waiting = null;
            client.Send(new UffdControlReply { Number = dirty.Number }, file);
        }
        catch (GuestMemoryException exception)
        {
            SendError(client, exception);
        }
    }

    private static void SendError(Client client, GuestMemoryException exception)
    {
        client.Waiting = null;
        client.Send(new UffdControlReply { ErrorId = exception.Error.ToString(), Message = exception.Message });
    }

    private void Close(Client client)
    {
        if (!_clients.Remove(client)) return;
        _epoll.Remove(client.Socket);
        client.Socket.Dispose();
    }

    /// <summary>What can be asked for.</summary>
    /// <param name="Status">Tells the figures.</param>
    /// <param name="Figures">Tells those of every VM, however many there are.</param>
    /// <param name="Dirty">Tells what a VM wrote, or where 0 is asked for all did, and takes it where asked to; null where that is to be tried again.</param>
    /// <param name="Cleared">What was taken has arrived.</param>
    /// <param name="AddImage">Serves one more image; false where it is to be asked again whether that is done.</param>
    /// <param name="OfVm">Does what is asked of one VM, or removes an image; the descriptor that comes with the answer is then the caller's.</param>
    /// <param name="Stop">Stops the handler.</param>
    /// <param name="Upgrade">Hands the handler to another program; the answer comes later.</param>
    internal sealed record Actions(Func<UffdStatus> Status, Func<SafeDescriptor> Figures, Func<int, bool, (SafeDescriptor File, int Number)?> Dirty, Action<int> Cleared,
        Func<UffdControlRequest, bool> AddImage, Func<UffdControlRequest, (UffdControlReply Reply, SafeDescriptor? File)> OfVm, Action Stop, Action<UffdControlRequest> Upgrade);

    private sealed class Client(ControlServer server, SafeDescriptor socket) : IWatched
    {
        private readonly JsonLines _lines = new(socket);

        public SafeDescriptor Socket => socket;

        /// <summary>Whether nothing is open between it and this process.</summary>
        public bool IsIdle => Waiting is null && _lines.IsEmpty;

        /// <summary>What could not be answered yet; null where nothing is open.</summary>
        public UffdControlRequest? Waiting { get; set; }

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
                SendError(this, exception);
                if (!socket.IsClosed) server.Close(this);
            }
        }
    }
}
