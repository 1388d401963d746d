using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Where the VMMs of an image come in: accepts their connections, receives what they hand over, and closes connections that have ended. Where another
/// process accepts them it notices their end alone. What becomes of the VMs is the owner's matter. For one thread.
/// </summary>
internal sealed class HandoverListener : IWatched, IDisposable
{
    private readonly UffdConnectionAcceptor? _acceptor;
    private readonly string _image;
    private readonly IHandoverOwner _owner;
    private readonly List<UffdConnection> _connections = [];
    private Epoll? _epoll;

    /// <param name="image">The name of the image.</param>
    /// <param name="listener">The socket, taken over; null where another process listens.</param>
    /// <param name="options">The handler's.</param>
    /// <param name="acceptTimeout">How long the first VMM may take to connect; null for ever.</param>
    /// <param name="owner">Who owns the VMs.</param>
    public HandoverListener(string image, UnixListener? listener, UffdHandlerOptions options, TimeSpan? acceptTimeout, IHandoverOwner owner)
    {
        _image = image;
        _owner = owner;
        if (listener is not null) _acceptor = new UffdConnectionAcceptor(listener, options.MaxConnections, options.HandoverTimeout, acceptTimeout, owner.Failed);
    }

    /// <summary>The socket. Only where this process listens.</summary>
    public UnixListener Listener => _acceptor!.Listener;

    public string Path => Listener.Path;

    /// <summary>Whether no hand-over is under way.</summary>
    public bool IsQuiet => !_connections.Exists(static connection => connection is { IsEnded: false, MillisecondsLeft: not null });

    /// <summary>VMMs that are connected.</summary>
    public int ConnectionCount => _connections.Count;

    /// <summary>Whether a VMM has ever connected.</summary>
    public bool HasAccepted { get; private set; }

    /// <summary>Whether VMMs can connect, now or when it is resumed.</summary>
    public bool IsListening => _acceptor is { Listener.Socket.IsClosed: false };

    /// <summary>Milliseconds until something is due; -1 where nothing is.</summary>
    public int Timeout
    {
        get
        {
            var timeout = _acceptor?.Timeout ?? -1;
            foreach (var connection in _connections)
            {
                if (connection is { IsEnded: false, MillisecondsLeft: { } left }) timeout = timeout < 0 ? left : Math.Min(timeout, left);
            }

            return timeout;
        }
    }

    /// <summary>Has a loop tell it what comes.</summary>
    public void Open(Epoll epoll)
    {
        _epoll = epoll;
        _acceptor?.Open(epoll, this);
    }

    public void Ready()
    {
        while (_acceptor!.TryAccept(_owner.ConnectionCount, out var connection))
        {
            HasAccepted = true;
            try
            {
                Add(connection);
            }
            catch (SyscallException exception)
            {
                _owner.Failed(exception.Message, null);
                Close(connection);
            }
        }
    }

    /// <summary>Goes on with a connection, which may be one that another process has accepted.</summary>
    /// <exception cref="SyscallException">Its end cannot be noticed. It was added all the same.</exception>
    public void Add(UffdConnection connection)
    {
        _connections.Add(connection);
        connection.Watch(_epoll!, Receive);
    }

    /// <summary>A VMM has come to another socket of the handler: none needs to come to this one.</summary>
    public void StopWaiting() => _acceptor?.StopWaiting();

    /// <summary>Lets no VMM in any more; the socket's file is removed, and connections without a VM are closed.</summary>
    public void StopListening()
    {
        StopWaiting();
        _acceptor?.Dispose();
        foreach (var connection in _connections.FindAll(connection => _owner.CountVms(connection) == 0)) End(connection);
    }

    /// <summary>Lets no VMM in until <see cref="Resume"/>; those that connect wait.</summary>
    public void Suspend()
    {
        if (IsListening) _acceptor!.Suspend();
    }

    public void Resume()
    {
        if (IsListening) _acceptor!.Resume();
    }

    /// <summary>Ends hand-overs that take too long; an error where no VMM connected in time.</summary>
    public GuestMemoryException? HandleTimeouts()
    {
        for (var i = _connections.Count - 1; i >= 0; i--)
        {
            if (_connections[i] is { IsEnded: false, IsOverdue: true } connection) Receive(connection);
        }

        return _acceptor?.HandleTimeouts();
    }

    /// <summary>A VM that came over a connection has ended, and its owner has let go of it; with the last one the connection ends too.</summary>
    public void VmEnded(UffdConnection connection)
    {
        if (!connection.IsEnded && _owner.CountVms(connection) == 0) End(connection);
        else CloseIfUnused(connection);
    }

    /// <summary>Closes every connection, and the socket.</summary>
    public void Close()
    {
        while (_connections.Count > 0) Close(_connections[^1]);
        Dispose();
    }

    /// <summary>Lets no VMM in any more. Connections stay, which may be another process's by now.</summary>
    public void Dispose() => _acceptor?.Dispose();

    /// <summary>Takes hand-overs from a connection, or its end.</summary>
    private void Receive(UffdConnection connection)
    {
        try
        {
            // What was read may hold more than one.
            while (!connection.IsEnded && connection.TryReceive(out var handover)) Take(connection, handover);
        }
#pragma warning disable CA1031 // Whatever a VMM sends ends its connection and no other.
        catch (Exception exception)
        {
            _owner.Failed($"Process {connection.Peer.pid} of user {connection.Peer.uid}: {exception.Message}", connection.Peer.uid);
            connection.Refuse();
        }
#pragma warning restore CA1031

        if (connection.IsEnded) End(connection);
    }

    /// <summary>Gives a VM to its owner, unless there are too many.</summary>
    private void Take(UffdConnection connection, UffdHandover handover)
    {
        var own = _owner.CountVms(connection);
        var why = IsListening ? _acceptor!.WhyRefused(connection.Peer, _owner.VmCount, own)
            : $"A VM of process {connection.Peer.pid} was refused: no VM is served from the image '{_image}' any more.";
        if (why is null)
        {
            _owner.Take(this, connection, handover);
            return;
        }

        handover.Close();
        _owner.Failed(why, connection.Peer.uid);
        // The VMs that came before go on.
        if (own == 0) connection.IsEnded = true;
    }

    private void End(UffdConnection connection)
    {
        connection.IsEnded = true;
        connection.Unwatch();
        // The VMM hears at once that it is served no more; of an adopted connection another process has the original.
        if (!connection.IsAdopted) UnixSocket.Shutdown(connection.Socket);
        _owner.Ended(connection);
        CloseIfUnused(connection);
    }

    private void CloseIfUnused(UffdConnection connection)
    {
        if (connection.IsEnded && _owner.CountVms(connection) == 0) Close(connection);
    }

    private void Close(UffdConnection connection)
    {
        if (!_connections.Remove(connection)) return;
        connection.Unwatch();
        connection.Dispose();
    }
}
