using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>Hands the control socket and its clients to another supervisor.</content>
internal sealed partial class ControlServer
{
    private const string SocketPart = "control";
    private const string ClientPart = "client";
    private const string AskerPart = "asker";

    // The client that asked for the upgrade.
    private Client? _asker;

    /// <summary>Whether a name is one of <see cref="Parts"/>.</summary>
    public static bool IsPart(string name) => name is SocketPart or ClientPart or AskerPart;

    /// <summary>Goes on with the control socket of another supervisor, and with its clients.</summary>
    /// <param name="epoll">What waits for the descriptors.</param>
    /// <param name="path">The path of the socket.</param>
    /// <param name="parts">See <see cref="Parts"/>; taken over.</param>
    /// <param name="actions">What can be asked for.</param>
    /// <exception cref="GuestMemoryException">StateMismatch: there is no such socket.</exception>
    public static ControlServer Adopt(Epoll epoll, string path, IReadOnlyList<(string Name, SafeDescriptor Descriptor)> parts, Actions actions)
    {
        if (parts.FirstOrDefault(static part => part.Name == SocketPart).Descriptor is not { } socket) throw new GuestMemoryException(GuestMemoryError.StateMismatch, "The control socket of the handler was not handed over.");
        var server = new ControlServer(epoll, path, socket, actions);
        epoll.Add(server._socket, server);
        foreach (var (name, descriptor) in parts)
        {
            if (name == SocketPart) continue;
            var client = new Client(server, descriptor);
            server._clients.Add(client);
            epoll.Add(descriptor, client);
            if (name == AskerPart) server._asker = client;
        }

        return server;
    }

    /// <summary>The listening socket, and the connections of all clients that wait for no answer.</summary>
    public IEnumerable<(string Name, SafeDescriptor Descriptor)> Parts() =>
        _clients.Where(static client => client.IsIdle).Select(client => (client == _asker ? AskerPart : ClientPart, client.Socket)).Prepend((SocketPart, _socket));

    /// <summary>Tells the clients that are not among <see cref="Parts"/> to connect again.</summary>
    public void DismissOthers()
    {
        foreach (var client in _clients.Where(static client => !client.IsIdle).ToArray())
            SendError(client, new GuestMemoryException(GuestMemoryError.ControlFailed, "Another process has the handler now; it must be asked again."));
    }

    /// <summary>Answers the client that asked for the upgrade.</summary>
    public void AnswerUpgrade(GuestMemoryException? failure)
    {
        if (_asker is { Socket.IsClosed: false } asker)
        {
            if (failure is null) asker.Send(new UffdControlReply { Handler = _actions.Status() });
            else SendError(asker, failure);
        }

        _asker = null;
    }

    private void Upgrade(Client client, UffdControlRequest request)
    {
        try
        {
            _actions.Upgrade(request);
            _asker = client;
        }
        catch (GuestMemoryException exception)
        {
            SendError(client, exception);
        }
    }
}
